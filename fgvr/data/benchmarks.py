"""Published benchmark datasets: title, archive layout and official figures of each. Nothing is downloaded.

`BENCHMARKS` is the table; `open_benchmark` is what `dataset=cub200` and the others call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fgvr.data import layouts
from fgvr.data.archives import Archive, Contents
from fgvr.data.catalog import Catalog
from fgvr.data.datasets import Dataset, bad_image_notes
from fgvr.data.folder import Inspector
from fgvr.data.layouts import Reader
from fgvr.data.listing import Listing, describe_missing_files, missing_files
from fgvr.data.split_files import apply_split_file
from fgvr.data.splits import OnBadImage, SplitRequest, check_on_bad_image, split_few_shot
from fgvr.errors import ConfigError, DatasetError
from fgvr.types import Category, Figures, Sample
from fgvr.utils.text import nearest, normalise_name, plain_name

NAMES = Path(__file__).parent / "names"


@dataclass(frozen=True, slots=True)
class BenchmarkDataset:
    """One published dataset."""

    title: str
    superclass: str
    figures: Figures
    page: str  # where it is published
    archives: str  # what to extract
    parts: tuple[str, ...]  # what must be there; the first one tells the folder
    read: Reader
    inner: tuple[str, ...] = ()  # folders that extracting makes
    pictures: str = ""  # where the paths of split files start
    partitions: int = 1
    notes: tuple[str, ...] = ()


BENCHMARKS: Mapping[str, BenchmarkDataset] = {
    "cub200": BenchmarkDataset(
        "CUB-200-2011",
        "bird",
        Figures(200, 5_994, 5_794),
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "CUB_200_2011.tgz",
        ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "images"),
        layouts.read_cub,
        inner=("CUB_200_2011", "CUB_200_2011/CUB_200_2011"),
        pictures="images/",
        notes=("some pictures are in ImageNet too: models trained on it may have seen them",),
    ),
    "dogs120": BenchmarkDataset(
        "Stanford Dogs",
        "dog",
        Figures(120, 12_000, 8_580, train_each=100),
        "http://vision.stanford.edu/aditya86/ImageNetDogs/",
        "images.tar and lists.tar, into one folder",
        ("train_list.mat", "test_list.mat", "Images"),
        layouts.read_dogs,
        inner=("stanford_dogs",),
        pictures="Images/",
        notes=("all pictures are from ImageNet: models trained on it have seen them",),
    ),
    "cars196": BenchmarkDataset(
        "Stanford Cars",
        "car",
        Figures(196, 8_144, 8_041),
        "nowhere any more: its own site is gone. Reported to work in github.com/pytorch/vision issue 7545: the Kaggle data set "
        "jessicali9530/stanford-cars-dataset, with car_devkit.tgz and cars_test_annos_withlabels.mat from that thread. Layouts also read: "
        "cars_annos.mat with car_ims; class folders with names.csv and anno_{train,test}.csv (Kaggle jutrera/"
        "stanford-car-dataset-by-classes-folder); data/{train,test}-*.parquet (Hugging Face copies such as tanganke/stanford_cars)",
        "cars_train, cars_test, devkit and cars_test_annos_withlabels.mat, into one folder",
        ("devkit|cars_annos.mat|anno_train.csv|data",),
        layouts.read_cars,
        inner=("stanford_cars", "StanfordCars"),
    ),
    "flowers102": BenchmarkDataset(
        "Oxford 102 Flowers",
        "flower",
        Figures(102, 2_040, 6_149, train_each=20),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "102flowers.tgz, imagelabels.mat and setid.mat, into one folder",
        ("imagelabels.mat", "setid.mat", "jpg"),
        layouts.read_flowers,
        inner=("flowers-102", "oxford_flowers"),
        pictures="jpg/",
    ),
    "pets37": BenchmarkDataset(
        "Oxford-IIIT Pets",
        "pet",
        Figures(37, 3_680, 3_669),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "images.tar.gz and annotations.tar.gz, into one folder",
        ("annotations/trainval.txt", "annotations/test.txt", "images"),
        layouts.read_pets,
        inner=("oxford-iiit-pet", "oxford_pets"),
        pictures="images/",
    ),
    "aircraft100": BenchmarkDataset(
        "FGVC-Aircraft, variants",
        "aircraft",
        Figures(100, 6_667, 3_333),
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "fgvc-aircraft-2013b.tar.gz",
        ("data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt", "data/images"),
        layouts.read_aircraft,
        inner=("fgvc-aircraft-2013b", "fgvc_aircraft"),
        pictures="data/images/",
        notes=("the lowest 20 rows of each picture are its copyright line; they are left in",),
    ),
    "food101": BenchmarkDataset(
        "Food-101",
        "dish",
        Figures(101, 75_750, 25_250, train_each=750, test_each=250),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "food-101.tar.gz",
        ("meta/classes.txt", "meta/train.json", "meta/test.json", "images"),
        layouts.read_food,
        inner=("food-101",),
        pictures="images/",
        notes=("the train labels were left noisy by its makers",),
    ),
    "dtd47": BenchmarkDataset(
        "Describable Textures",
        "texture",
        Figures(47, 3_760, 1_880, train_each=80, test_each=40),
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "dtd-r1.0.1.tar.gz",
        ("labels/train1.txt", "images"),
        layouts.read_dtd,
        inner=("dtd", "dtd/dtd"),
        pictures="images/",
        partitions=10,
    ),
    "eurosat10": BenchmarkDataset(
        "EuroSAT (RGB)",
        "kind of land seen from a satellite",
        Figures(10, 27_000, 0),
        "https://github.com/phelber/EuroSAT",
        "EuroSAT.zip, the RGB version",
        ("AnnualCrop",),
        layouts.read_class_folders(),
        inner=("2750", "EuroSAT_RGB", "eurosat/2750"),
        notes=("there is no official split; dataset.split_file takes CoOp's",),
    ),
    "sun397": BenchmarkDataset(
        "SUN397",
        "scene",
        Figures(397, 19_850, 19_850, train_each=50, test_each=50),
        "https://vision.princeton.edu/projects/2010/SUN/",
        "SUN397.tar.gz and Partitions.zip, into one folder",
        ("ClassName.txt",),
        layouts.read_sun,
        inner=("SUN397",),
        partitions=10,
    ),
    "ucf101": BenchmarkDataset(
        "UCF101, middle frames",
        "human action",
        Figures(101, 9_537, 3_783),
        "https://www.crcv.ucf.edu/data/UCF101.php (lists); middle frames as cut by CoOp: DATASETS.md of github.com/KaiyangZhou/CoOp",
        "UCF-101-midframes.zip and UCF101TrainTestSplits-RecognitionTask.zip, into one folder",
        ("UCF-101-midframes", "ucfTrainTestlist"),
        layouts.read_ucf,
        inner=("ucf101",),
        pictures="UCF-101-midframes/",
        partitions=3,
    ),
    "caltech101": BenchmarkDataset(
        "Caltech-101",
        "object",
        Figures(101, 8_677, 0),
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "caltech-101.zip and the 101_ObjectCategories.tar.gz in it",
        ("101_ObjectCategories",),
        layouts.read_class_folders(below="101_ObjectCategories", ignored=("BACKGROUND_Google",)),
        inner=("caltech-101", "caltech101"),
        pictures="101_ObjectCategories/",
        notes=(
            "there is no official split; dataset.split_file takes CoOp's",
            "Faces and Faces_easy show the same 435 photographs; CoOp leaves Faces_easy out",
        ),
    ),
    "imagenet1k": BenchmarkDataset(
        "ImageNet-1k (ILSVRC 2012)",
        "object",
        Figures(1_000, 1_281_167, 50_000, test_each=50),
        "https://image-net.org (free for research, with an account)",
        "ILSVRC2012_img_train.tar (and the archives in it), ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, "
        "into train/<synset>/, val/ and ILSVRC2012_devkit_t12/",
        ("train", "val"),
        layouts.read_imagenet,
        inner=("images", "imagenet", "ILSVRC/Data/CLS-LOC"),
        notes=("the test is the validation part, as everywhere: the answers of the real test part are not public",),
    ),
    "birdsnap500": BenchmarkDataset(
        "Birdsnap",
        "bird",
        Figures(500, 47_386, 2_443),
        "http://thomasberg.org (birdsnap.tgz, version 1.1)",
        "birdsnap.tgz, then run its get_birdsnap.py: it fetches the pictures from where they were found, and many are gone",
        ("species.txt", "images.txt", "test_images.txt", "images"),
        layouts.read_birdsnap,
        inner=("birdsnap", "download"),
        pictures="images/",
    ),
}


@dataclass(frozen=True, slots=True)
class Name:
    """What people call a class: the name for prompts and reports, other spellings, and what it is a kind of ("" = the dataset's)."""

    name: str
    aliases: tuple[str, ...] = ()
    superclass: str = ""


def open_benchmark(
    *,
    name: str,
    root: Path | str,
    shots: int | None = 4,
    tail_shots: int | None = None,
    test_per_class: int | None = None,
    calibration: int = 0,
    split_seed: int = 0,
    split_file: Path | str | None = None,
    partition: int = 1,
    on_bad_image: OnBadImage = "skip",
    cache_dir: Path | None = None,
) -> Dataset:
    """A dataset of `BENCHMARKS` from its extracted archive at `root`, in its official order and split.

    `partition` is which of several official splits; `split_file` replaces the split by one of CoOp's (`split_zhou_*.json`, or a CSV with
    split and filename). Shots, calibration and test images are chosen among them as in any folder (`SplitRequest`).

    Raises:
        DatasetError: nothing (or something else) lies at `root`: says what is expected and where it is published; or lists that
            contradict themselves, with file and line.
    """
    request = SplitRequest(shots, test_per_class, calibration, split_seed, tail_shots)
    check_on_bad_image(on_bad_image)
    known = _known(name)
    if not 1 <= partition <= known.partitions:
        raise ConfigError(f"dataset.partition={partition}: {known.title} has {known.partitions}")
    base = _base(name, known, Path(root).expanduser())
    contents = known.read(Archive(base), partition)
    listing, notes = make_listing(name, known, contents, base), [*known.notes, *contents.notes]
    world = "official split" if contents.official else "seeded split"
    if partition > 1:
        world += f" {partition}"
    if split_file is not None:
        path = Path(split_file).expanduser()
        listing, world = apply_split_file(listing, path, known.pictures), path.stem
    inspector = Inspector(base, cache_dir=cache_dir, strict=on_bad_image == "error")
    try:
        split = split_few_shot(listing, inspector, request, notes)
    except DatasetError as error:
        gone = describe_missing_files(missing_files(listing))
        raise DatasetError(f"{error}. {gone}" if gone else str(error)) from error
    bad = tuple(inspector.bad[key] for key in sorted(inspector.bad))
    notes.extend(bad_image_notes(bad))
    figures = known.figures if split_file is None else None
    return Dataset(
        name, world, listing.catalog, known.superclass, split, base, tuple(notes), bad, listing, figures, inspector.seen, known.page
    )


def official_names(name: str) -> dict[str, Name]:
    """id -> Name in the official order of classes; empty where the archive's own names serve."""
    path = NAMES / f"{name}.tsv"
    if not path.exists():
        return {}
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {id: Name(shown, tuple(filter(None, "".join(rest[:1]).split("|"))), "".join(rest[1:2])) for id, shown, *rest in rows}


def make_listing(name: str, known: BenchmarkDataset, contents: Contents, base: Path) -> Listing:
    """Catalogue and samples of an archive; a label no class has, or an image listed twice, is a DatasetError that says where."""
    names = official_names(name)
    strangers = [f"{id} ({archive_name})" for id, archive_name in contents.classes if names and id not in names]
    if strangers:
        raise DatasetError(f"{base}: {known.title} has no class {', '.join(strangers[:5])}; is this {name}?")
    _check_order(base, contents, names)
    catalog = Catalog(tuple(_category(id, own, names.get(id), known.superclass) for id, own in contents.classes))
    parts: dict[bool, list[Sample]] = {False: [], True: []}
    seen: dict[str, str] = {}
    for row in contents.rows:
        if row.label not in catalog:
            raise DatasetError(
                f"{base}: {row.where}: class {row.label!r} is none of the {len(catalog)} listed ({_span(catalog.ids)}); "
                "extract the lists again, and take them all from one version"
            )
        if row.key in seen:
            raise DatasetError(f"{base}: {row.where}: {row.key} is listed before, in {seen[row.key]}; extract the lists again")
        seen[row.key] = row.where
        parts[row.test].append(Sample(base / row.key, row.key, row.label))
    own = dict(contents.classes)
    spellings = {id: (name.name, *name.aliases) for id, name in names.items()}
    return Listing(catalog, tuple(parts[False]), tuple(parts[True]), contents.official, own, contents.checksums, spellings)


def _check_order(base: Path, contents: Contents, names: Mapping[str, Name]) -> None:
    """A class under the name of another would be scored as that other: DatasetError. Names nobody knows are the doctor's business."""
    meant = {normalise_name(spelling): id for id, name in names.items() for spelling in (name.name, *name.aliases)}
    swapped = [(id, own) for id, own in contents.classes if meant.get(normalise_name(own), id) != id]
    if swapped:
        id, own = swapped[0]
        raise DatasetError(
            f"{base}: class {id} is {names[id].name} officially, but the archive calls it {own} ({len(swapped)} such classes): "
            "the class list was changed or is of another version; extract it again"
        )


def _category(id: str, own: str, known: Name | None, superclass: str) -> Category:
    """A class under its proper name; whatever the archive calls it remains an alias."""
    if known is None:
        known = Name(spoken(own))
    spellings = {normalise_name(known.name): known.name}
    for alias in (*known.aliases, own, spoken(own)):
        spellings.setdefault(normalise_name(alias), alias)
    extra = tuple(list(spellings.values())[1:]) if own != id or not own.isdecimal() else known.aliases
    return Category(id, known.name, known.superclass or superclass, extra)


def spoken(own: str) -> str:
    """An archive's name as people write it: `ApplyEyeMakeup` -> `apply eye makeup`, `/c/church/indoor` -> `indoor church`."""
    if own.startswith("/"):
        return " ".join(reversed(own.split("/")[2:])).replace("_", " ")
    words = [word for part in plain_name(own).split() for word in _camel(part)]
    return " ".join(words)


def _camel(word: str) -> list[str]:
    """`SeaLake` -> sea, lake; a word with one capital, or none, or with digits, stays as it is."""
    cuts = [i for i in range(1, len(word)) if word[i].isupper() and word[i - 1].islower()]
    if not cuts or not word.isalpha():
        return [word]
    return [word[a:b].lower() for a, b in zip([0, *cuts], [*cuts, len(word)], strict=True)]


def _span(ids: tuple[str, ...]) -> str:
    return f"{ids[0]} to {ids[-1]}" if ids else "none"


def _known(name: str) -> BenchmarkDataset:
    if name not in BENCHMARKS:
        raise ConfigError(f"no dataset is called {name!r}; did you mean {', '.join(nearest(name, BENCHMARKS) or BENCHMARKS)}?")
    return BENCHMARKS[name]


def _base(name: str, known: BenchmarkDataset, root: Path) -> Path:
    """The folder in which the archive's files lie; anything missing is a DatasetError with the way to mend it."""
    folders = (root, *(root / name for name in known.inner))
    bases = [folder for marker in known.parts[0].split("|") for folder in folders if (folder / marker).exists()]
    lacks = {base: [part for part in known.parts[1:] if not (base / part).exists()] for base in bases}
    base = min(bases, key=lambda base: len(lacks[base]), default=None)  # a copy of the lists may lie above the archive
    missing = list(known.parts) if base is None else lacks[base]
    if base is not None and not missing:
        return base
    what = "does not exist" if not root.exists() else "is a file" if not root.is_dir() else "is not the archive of " + known.title
    if base is not None:
        what = f"lacks part of {known.title}"
    raise DatasetError(
        f"dataset={name}: {root if base is None else base} {what}; missing: {', '.join(p.replace('|', ' or ') for p in missing)}.\n"
        f"  {known.title} is published at: {known.page}\n"
        f"  Extract {known.archives}, and set dataset.root to the folder. Nothing is downloaded by itself."
    )
