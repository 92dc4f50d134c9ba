"""How each published archive lists its classes, its images and its official split. `read_<dataset>` follows what its makers wrote.

Readers believe the archive: nothing is downloaded, guessed or put right here; names for people come from `data.names`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fgvr.data.archives import Archive, Contents, Row, read_parquet
from fgvr.errors import DatasetError

Reader = Callable[[Archive, int], Contents]
"""Takes the archive and the partition (1 where there is only one)."""


def read_cub200(archive: Archive, partition: int) -> Contents:
    """Four lists of `number value`, joined by the image's number; in train_test_split.txt 1 is train."""
    labels, training = archive.pairs("image_class_labels.txt"), archive.pairs("train_test_split.txt")
    rows = []
    for where, (number, path) in archive.words("images.txt", 2):
        if number not in labels or number not in training:
            raise DatasetError(f"{archive.root}: {where}: image {number} has no class or no part of the split; extract the lists again")
        rows.append(Row(f"images/{path}", labels[number], training[number] == "0", where))
    return Contents(list(archive.pairs("classes.txt").items()), rows)


def read_dogs120(archive: Archive, partition: int) -> Contents:
    """train_list.mat and test_list.mat; the class is the folder, whose name starts with the synset's id."""
    classes: dict[str, str] = {}
    rows = []
    for part in ("train", "test"):
        path = f"{part}_list.mat"
        files, labels = _listed(archive.mat(path, "file_list")), _listed(archive.mat(path, "labels"))
        if len(files) != len(labels):
            raise DatasetError(f"{archive.root / path}: {len(files)} files but {len(labels)} labels; extract it again")
        for place, (file, label) in enumerate(zip(files, map(int, labels), strict=True), 1):
            synset, _, name = str(file).partition("/")[0].partition("-")
            if classes.setdefault(str(label), f"{synset}-{name}") != f"{synset}-{name}":
                raise DatasetError(f"{archive.root}: {path}, entry {place}: label {label} is {classes[str(label)]} above and {name} here")
            rows.append(Row(f"Images/{file}", synset, part == "test", f"{path}, entry {place}"))
    ordered = sorted(classes.items(), key=lambda item: int(item[0]))
    return Contents([(name.partition("-")[0], name) for _, name in ordered], rows)


def read_cars196(archive: Archive, partition: int) -> Contents:
    """The layout whose pictures are there: one .mat for all images, class folders with CSV, devkit (as published, and as torchvision
    wants it), or parquet files. Copies in use bring the lists of several."""
    layouts = {"cars_annos.mat": _cars_in_one_file, "anno_train.csv": _cars_by_folder, "devkit": _cars_devkit, "data": read_parquet}
    found = [read for marker, read in layouts.items() if archive.has(marker)]
    return _with_pictures(archive, found)


def _with_pictures(archive: Archive, readers: Sequence[Callable[[Archive], Contents]]) -> Contents:
    """What the first reader lists whose first picture is there; when there is none, the first list that can be read."""
    read: list[Contents] = []
    failed: list[DatasetError] = []
    for reader in readers:
        try:
            contents = reader(archive)
        except DatasetError as error:
            failed.append(error)
            continue
        if contents.rows and archive.has(contents.rows[0].key):
            return contents
        read.append(contents)
    if failed and not read:
        raise failed[0]
    return read[0]


def _cars_devkit(archive: Archive) -> Contents:
    """Labels count from 1. The devkit's own test list has none: they were published apart. Train and test files share their names."""
    rows = []
    test = archive.first("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
    for part, path in (("cars_train", "devkit/cars_train_annos.mat"), ("cars_test", test)):
        notes = _records(archive, path, "annotations")
        twice = f"{part}/{part}"  # one of the copies in use has every folder twice
        folder = twice if notes and archive.has(f"{twice}/{notes[0]['fname']}") else part
        for place, note in enumerate(notes, 1):
            where = f"{path}, entry {place}"
            rows.append(Row(f"{folder}/{note['fname']}", str(int(note["class"])), part == "cars_test", where))
    return Contents(_counted(archive.mat("devkit/cars_meta.mat", "class_names")), rows)


def _cars_in_one_file(archive: Archive) -> Contents:
    notes = enumerate(_records(archive, "cars_annos.mat", "annotations"), 1)
    rows = [
        Row(str(note["relative_im_path"]), str(int(note["class"])), bool(note["test"]), f"cars_annos.mat, entry {i}") for i, note in notes
    ]
    return Contents(_counted(archive.mat("cars_annos.mat", "class_names")), rows)


def _cars_by_folder(archive: Archive) -> Contents:
    """names.csv, and anno_{train,test}.csv without headers: file, x1, y1, x2, y2, class from 1. `/` of a name is `-` in its folder."""
    names = [cells[0] for _, cells in archive.cells("names.csv", 1)]
    base = archive.first("car_data/car_data", "car_data", "train").removesuffix("train")
    rows = []
    for part in ("train", "test"):
        for where, cells in archive.cells(f"anno_{part}.csv", 6):
            label = cells[5]
            name = names[int(label) - 1].replace("/", "-") if label.isdecimal() and 0 < int(label) <= len(names) else "?"
            rows.append(Row("/".join(p for p in (base, part, name, cells[0]) if p), label, part == "test", where))
    return Contents(_counted(names), rows)


def read_flowers102(archive: Archive, partition: int) -> Contents:
    """imagelabels.mat by image number, setid.mat: trnid and valid are support, tstid is test, as its makers wrote (papers swap them)."""
    labels = [str(int(label)) for label in _listed(archive.mat("imagelabels.mat", "labels"))]
    rows = []
    for part, test in (("trnid", False), ("valid", False), ("tstid", True)):
        for number in sorted(int(n) for n in _listed(archive.mat("setid.mat", part))):
            if not 1 <= number <= len(labels):
                raise DatasetError(f"{archive.root}: setid.mat, {part}: image {number}, but imagelabels.mat has {len(labels)}")
            rows.append(Row(f"jpg/image_{number:05d}.jpg", labels[number - 1], test, f"imagelabels.mat, entry {number}"))
    return Contents([(id, id) for id in sorted(set(labels), key=int)], rows)


def read_pets37(archive: Archive, partition: int) -> Contents:
    """trainval.txt and test.txt: `image class species breed`; the class's name is the image's without its number. # starts a comment."""
    classes: dict[str, str] = {}
    rows = []
    for part in ("trainval", "test"):
        for where, (image, label, *_) in archive.words(f"annotations/{part}.txt", 4):
            if image.startswith("#"):
                continue
            name = image.rpartition("_")[0]
            if classes.setdefault(label, name) != name:
                raise DatasetError(f"{archive.root}: {where}: class {label} is {classes[label]} above and {name} here")
            rows.append(Row(f"images/{image}.jpg", label, part == "test", where))
    return Contents(sorted(classes.items(), key=lambda item: int(item[0])), rows)


def read_aircraft100(archive: Archive, partition: int) -> Contents:
    """variants.txt, and images_variant_*.txt: a seven-digit image and its variant, which may hold blanks."""
    variants = [name for _, name in archive.lines("data/variants.txt")]
    rows = [
        Row(f"data/images/{image}.jpg", variant, part == "test", where)
        for part in ("trainval", "test")
        for where, (image, variant) in archive.words(f"data/images_variant_{part}.txt", 2)
    ]
    return Contents([(name, name) for name in variants], rows)


def read_food101(archive: Archive, partition: int) -> Contents:
    """meta/classes.txt, and meta/{train,test}.json: class -> images without suffix."""
    rows = []
    for part in ("train", "test"):
        path = f"meta/{part}.json"
        for label, images in archive.json(path).items():
            rows += [Row(f"images/{image}.jpg", label, part == "test", f"{path}, {image}") for image in images]
    return Contents([(name, name) for _, name in archive.lines("meta/classes.txt")], rows)


def read_dtd47(archive: Archive, partition: int) -> Contents:
    """labels/{train,val,test}N.txt, N from 1 to 10; train and val are support."""
    rows = [
        Row(f"images/{line}", line.partition("/")[0], part == "test", where)
        for part in ("train", "val", "test")
        for where, line in archive.lines(f"labels/{part}{partition}.txt")
    ]
    return Contents([(name, name) for name in archive.folders("images")], rows)


def read_eurosat10(archive: Archive, partition: int) -> Contents:
    return _class_folders(archive, ".")


def read_caltech101(archive: Archive, partition: int) -> Contents:
    return _class_folders(archive, "101_ObjectCategories", ignored=("BACKGROUND_Google",))


def _class_folders(archive: Archive, below: str, *, ignored: tuple[str, ...] = ()) -> Contents:
    """Folders named by class, without an official split."""
    names = [name for name in archive.folders(below) if name not in ignored]
    rows = [Row(key, name, False, f"folder {name}") for name in names for key in archive.images(f"{below}/{name}")]
    return Contents([(name, name) for name in names], rows, official=False)


def read_sun397(archive: Archive, partition: int) -> Contents:
    """ClassName.txt and Training_NN.txt, Testing_NN.txt, NN from 01 to 10; the lists often lie beside the pictures' folder."""
    rows = []
    for part in ("Training", "Testing"):
        name = f"{part}_{partition:02d}.txt"
        path = archive.first(name, f"Partitions/{name}", f"../{name}", f"../Partitions/{name}")
        for where, line in archive.lines(path):
            rows.append(Row(line.lstrip("/"), line.rpartition("/")[0], part == "Testing", where))
    return Contents([(name, name) for _, name in archive.lines("ClassName.txt")], rows)


def read_ucf101(archive: Archive, partition: int) -> Contents:
    """The middle frame of each video, by the video lists trainlistNN.txt and testlistNN.txt, NN from 01 to 03.

    Frames lie as CoOp cut them: `UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg`.
    """
    lists = archive.first("ucfTrainTestlist", "ucfTrainTestlist/ucfTrainTestlist")
    rows = []
    for part in ("train", "test"):
        for where, line in archive.lines(f"{lists}/{part}list{partition:02d}.txt"):
            action, _, video = line.split()[0].partition("/")
            folder = "_".join(re.findall("[A-Z][^A-Z]*", action))
            rows.append(Row(f"UCF-101-midframes/{folder}/{video.removesuffix('.avi')}.jpg", action, part == "test", where))
    return Contents([(name, name) for _, (_, name) in archive.words(f"{lists}/classInd.txt", 2)], rows)


def read_imagenet1k(archive: Archive, partition: int) -> Contents:
    """train/<synset>/ is support; val/ is the test: sorted into synset folders, or flat with the devkit's or Kaggle's answers."""
    synsets = archive.folders("train")
    rows = [Row(key, synset, False, f"folder train/{synset}") for synset in synsets for key in archive.images(f"train/{synset}")]
    sorted_val = archive.folders("val")
    if sorted_val:
        rows += [Row(key, synset, True, f"folder val/{synset}") for synset in sorted_val for key in archive.images(f"val/{synset}")]
    elif archive.has("../../../LOC_val_solution.csv"):
        for where, row in archive.table("../../../LOC_val_solution.csv", delimiter=","):
            rows.append(Row(f"val/{row['ImageId']}.JPEG", row["PredictionString"].split()[0], True, where))
    else:
        rows += _devkit_answers(archive)
    return Contents([(synset, synset) for synset in synsets], rows)


def _devkit_answers(archive: Archive) -> Iterator[Row]:
    """The ground truth counts in ILSVRC2012_ID, which is not the order of the synset ids: meta.mat says which synset it means."""
    kit = archive.first("ILSVRC2012_devkit_t12/data", "../ILSVRC2012_devkit_t12/data", "data")
    synsets = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in _records(archive, f"{kit}/meta.mat", "synsets")}
    for number, (where, id) in enumerate(archive.lines(f"{kit}/ILSVRC2012_validation_ground_truth.txt"), 1):
        yield Row(f"val/ILSVRC2012_val_{number:08d}.JPEG", synsets.get(id, f"ILSVRC2012_ID {id}"), True, where)


def read_birdsnap500(archive: Archive, partition: int) -> Contents:
    """species.txt, images.txt (with the md5 of every picture) and test_images.txt, tables with headers; pictures below images/."""
    classes = [(row["id"], row["common"]) for _, row in archive.table("species.txt")]
    tested = {line for where, line in archive.lines("test_images.txt") if not where.endswith(", line 1")}
    listed = list(archive.table("images.txt"))
    unknown = tested - {row["path"] for _, row in listed}
    if unknown:
        raise DatasetError(f"{archive.root}: test_images.txt names {min(unknown)}, which images.txt does not")
    rows = [Row(f"images/{row['path']}", row["species_id"], row["path"] in tested, where) for where, row in listed]
    return Contents(classes, rows, checksums={f"images/{row['path']}": row["md5"].lower() for _, row in listed})


# --- helpers -----------------------------------------------------------------------------------------------------------------


def _counted(names: Any) -> list[tuple[str, str]]:
    """Names with the numbers from 1."""
    return [(str(number), str(name)) for number, name in enumerate(_listed(names), 1)]


def _listed(values: Any) -> list[Any]:
    """A MATLAB vector as a list, also when it has one entry and lost its dimension."""
    return list(values.reshape(-1)) if hasattr(values, "reshape") else list(values) if isinstance(values, list) else [values]


def _records(archive: Archive, path: str, name: str) -> list[Any]:
    return _listed(archive.mat(path, name))
