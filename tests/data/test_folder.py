"""Any sensible folder opens; any other says what is wrong with it."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.data import folder
from fgvr.data.datasets import open_folder
from fgvr.data.leaks import split_overlaps
from fgvr.data.near_duplicates import PerceptualHash
from fgvr.errors import DatasetError, ImageError
from fgvr.store.cache import NoCache


def paint(path: Path, number: int) -> Path:
    """A picture like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 6, 3), np.uint8)).save(path)
    return path


def classes(root: Path, names=("red_kite", "Black Kite"), each=6, start=0) -> Path:
    for c, name in enumerate(names):
        for i in range(each):
            paint(root / name / f"{i}.png", start + 1000 * c + i)
    return root


def table(root: Path, rows, columns="filename,class_name,class_id,split") -> Path:
    for i, row in enumerate(rows):
        if not (root / row[0]).exists() and row[0].endswith(".png") and not row[0].startswith("absent"):
            paint(root / row[0], i)
    with open(root / "labels.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return root


def keys(samples):
    return {sample.key for sample in samples}


# --- class folders -----------------------------------------------------------------------------------------------------------


def test_class_folders_are_split_by_seed(tmp_path):
    dataset = open_folder(root=classes(tmp_path / "kites"), shots=2, calibration=1, superclass="bird")
    assert dataset.name == "kites" and dataset.superclass == "bird"
    assert dataset.catalog.names() == ("Black Kite", "red kite") and dataset.catalog.ids == ("Black Kite", "red_kite")
    assert all(category.superclass == "bird" for category in dataset.catalog)
    split = dataset.split
    assert (len(split.support), len(split.calibration), len(split.test)) == (4, 2, 6)
    assert len(keys(split.support) | keys(split.calibration) | keys(split.test)) == 12
    assert all(s.sha256 and s.label in s.key and dataset.root / s.key == s.image for s in (*split.support, *split.test))
    assert str(dataset) == "kites (kites): 2 classes, 4 support, 2 calibration, 6 test images"


def test_the_same_seed_gives_the_same_split_and_another_one_another(tmp_path):
    root = classes(tmp_path / "a")
    copy = shutil.copytree(root, tmp_path / "b")
    hashes = [open_folder(root=r, shots=2, split_seed=s).split.split_hash for r, s in ((root, 0), (root, 0), (copy, 0), (root, 1))]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


def test_the_test_can_be_limited_or_left_out(tmp_path):
    root = classes(tmp_path)
    assert len(open_folder(root=root, shots=2, test_per_class=1).split.test) == 2
    assert len(open_folder(root=root, shots=2, test_per_class=99).split.test) == 8
    nothing = open_folder(root=root, shots=6, test_per_class=0).split
    assert (len(nothing.support), len(nothing.test)) == (12, 0)


def test_all_images_may_be_support(tmp_path):
    root = classes(tmp_path)
    split = open_folder(root=root, shots="all", calibration=1).split
    assert (len(split.support), len(split.calibration), len(split.test)) == (10, 2, 0)
    split = open_folder(root=root, shots="all", test_per_class=2).split
    assert (len(split.support), len(split.test)) == (8, 4)


def test_classes_with_too_few_images_are_named_with_what_was_asked_for(tmp_path):
    root = classes(tmp_path)
    (root / "red_kite" / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"shots=4 with dataset\.calibration=1 and 1 to test needs 6 .*: red kite \(5\)\."):
        open_folder(root=root, shots=4, calibration=1, strict=True)


def test_a_class_with_fewer_images_gives_what_it_has_and_it_is_said(tmp_path, caplog):
    classes(tmp_path, names=("kite",))
    classes(tmp_path, names=("rook",), each=3, start=500)
    classes(tmp_path, names=("owl",), each=1, start=900)
    dataset = open_folder(root=tmp_path, shots=4)
    assert Counter(s.label for s in dataset.split.support) == {"kite": 4, "rook": 2, "owl": 1}
    assert Counter(s.label for s in dataset.split.test) == {"kite": 2, "rook": 1}
    fewer, single = dataset.notes
    assert "dataset.shots=4 with 1 to test: 2 classes have fewer images, of which all are used: owl (1), rook (2)" in fewer
    assert "1 classes have a single support image: a prototype, but no leave-one-out estimate: owl" in single and single in caplog.text


def test_an_official_support_part_gives_what_it_has(tmp_path):
    classes(tmp_path / "train", each=3)
    classes(tmp_path / "test", each=2, start=500)
    dataset = open_folder(root=tmp_path, shots=9)
    assert (len(dataset.split.support), len(dataset.split.test)) == (6, 4)
    assert dataset.notes == ("dataset.shots=9: 2 classes have fewer images, of which all are used: Black Kite (3), red kite (3)",)
    with pytest.raises(DatasetError, match=r"dataset\.shots=9 needs 9 images .*Black Kite \(3\)"):
        open_folder(root=tmp_path, shots=9, strict=True)


def test_calibration_images_are_never_given_away(tmp_path):
    with pytest.raises(DatasetError, match=r"needs 7 images of each class; too few: Black Kite \(6\), red kite \(6\)"):
        open_folder(root=classes(tmp_path), shots=4, calibration=6)


def test_a_photograph_in_two_classes_of_an_official_split_is_left_out_of_both(tmp_path):
    classes(tmp_path / "train", each=3)
    classes(tmp_path / "test", each=2, start=500)
    shutil.copy(tmp_path / "train" / "red_kite" / "0.png", tmp_path / "train" / "Black Kite" / "same.png")
    dataset = open_folder(root=tmp_path, shots=9)
    assert Counter(s.label for s in dataset.split.support) == {"red_kite": 2, "Black Kite": 3}
    assert any("in two classes" in n and "train/Black Kite/same.png and train/red_kite/0.png" in n for n in dataset.notes)


def test_the_table_itself_may_be_named(tmp_path):
    root = table(tmp_path, rows())
    assert open_folder(root=root / "labels.csv", shots=2).split == open_folder(root=root, shots=2).split


def test_hidden_files_other_files_and_links_do_not_disturb(tmp_path):
    root = classes(tmp_path / "r")
    (root / "README.md").touch()
    (root / "red_kite" / "Thumbs.db").touch()
    (root / "red_kite" / "._0.png").touch()
    (root / ".ipynb_checkpoints").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "linked").symlink_to(classes(tmp_path / "other", names=["x"], start=9000) / "x")
    assert open_folder(root=root, shots=2).catalog.ids == ("Black Kite", "linked", "red_kite")


def test_names_with_blanks_accents_and_brackets_work(tmp_path):
    dataset = open_folder(root=classes(tmp_path / "mes données = [1]", names=("Épervier d'Europe", "100% {x}, y")), shots=2)
    assert dataset.catalog.find("epervier d'europe") is not None


def test_folders_that_read_the_same_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="read the same"):
        open_folder(root=classes(tmp_path, names=("red_kite", "Red-Kite")))


# --- official splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("support", "test"), [("train", "test"), ("Support", "Query"), ("val", "test")])
def test_an_official_test_part_is_kept(tmp_path, caplog, support, test):
    classes(tmp_path / support)
    classes(tmp_path / test, each=3, start=500)
    with caplog.at_level("INFO"):
        dataset = open_folder(root=tmp_path, shots=2, calibration=2)
    told = "8 of 12 labelled images are used (dataset.shots=2 with dataset.calibration=2); dataset.shots=all uses all"
    assert told in caplog.text
    assert len(dataset.catalog) == 2
    assert all(s.key.startswith(test) for s in dataset.split.test) and len(dataset.split.test) == 6
    assert all(s.key.startswith(support) for s in (*dataset.split.support, *dataset.split.calibration))
    assert (len(dataset.split.support), len(dataset.split.calibration)) == (4, 4)
    assert len(open_folder(root=tmp_path, shots="all", calibration=2, test_per_class=1).split.support) == 8


@pytest.mark.parametrize(
    ("support", "validation", "test"), [("train", "val", "test"), ("Training", "valid", "Testing"), ("train", "val", "")]
)
def test_a_validation_part_is_left_out_and_said(tmp_path, support, validation, test):
    for part, start in ((support, 0), (validation, 300), (test, 600)):
        if part:
            classes(tmp_path / part, each=3, start=start)
    dataset = open_folder(root=tmp_path, shots=2)
    assert not any(key.startswith(validation) for key in keys([s for _, s in dataset.split]))
    assert f"{validation} holds 6 images, which are neither support nor test: left out" in dataset.notes


def test_validation_rows_of_a_table_are_left_out_and_said(tmp_path):
    rows = [(f"{name}{i}.png", name, "", part) for name in "ab" for i, part in enumerate(("train", "train", "val", "test"))]
    dataset = open_folder(root=table(tmp_path, rows), shots=2)
    assert keys([s for _, s in dataset.split]) == {f"{name}{i}.png" for name in "ab" for i in (0, 1, 3)}
    assert any("2 rows of labels.csv are validation images" in note for note in dataset.notes)


def test_unlabelled_test_pictures_beside_a_train_part_are_left_out_and_said(tmp_path):
    classes(tmp_path / "train")
    paint(tmp_path / "test" / "1.png", 9)
    dataset = open_folder(root=tmp_path, shots=2)
    assert len(dataset.catalog) == 2 and "test holds 1 images, which are neither support nor test: left out" in dataset.notes


def test_train_alone_is_split_by_seed(tmp_path):
    classes(tmp_path / "train")
    dataset = open_folder(root=tmp_path, shots=4)
    assert dataset.catalog.ids == ("Black Kite", "red_kite") and len(dataset.split.test) == 4


def test_a_class_that_is_called_train_is_a_class(tmp_path):
    assert "train" in open_folder(root=classes(tmp_path, names=("car", "train", "test")), shots=2).catalog


def test_a_test_class_without_support_is_named(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test", names=("red_kite", "osprey"), start=500)
    with pytest.raises(DatasetError, match="no support images: osprey"):
        open_folder(root=tmp_path)


def test_overlaps_of_an_official_split_stay_for_the_guard_to_find(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test", start=500)
    split = open_folder(root=tmp_path, shots=2).split
    shutil.copy(str(split.support[0].image), tmp_path / "test" / "red_kite" / "planted.png")
    split = open_folder(root=tmp_path, shots=2).split
    assert [overlap.key for overlap in split_overlaps(split, PerceptualHash(NoCache()))] == ["test/red_kite/planted.png"]
    assert not any("two classes" in note for note in open_folder(root=tmp_path, shots=2).notes), "the support does not depend on the test"


def test_of_exact_copies_a_seeded_split_takes_one(tmp_path):
    root = classes(tmp_path)
    shutil.copy(root / "red_kite" / "0.png", root / "red_kite" / "again.png")
    shutil.copy(root / "red_kite" / "1.png", root / "Black Kite" / "claimed by two.png")
    dataset = open_folder(root=root, shots=2)
    split = dataset.split
    everything = [*split.support, *split.test]
    assert len(everything) == len({s.sha256 for s in everything}) == 11
    assert dataset.notes == (
        "1 photograph is in two classes and left out of both, the first: Black Kite/claimed by two.png and red_kite/1.png",
        "1 exact copies of other images were left out",
    )


# --- labels.csv --------------------------------------------------------------------------------------------------------------


def rows(split=None, each=4):
    """`filename, class_name, class_id, split` of two classes; every other image is a query unless `split` says otherwise."""
    parts = [("query" if i % 2 else "support") if split is None else split for i in range(each)]
    return [(f"img/{c}{i}.png", name, str(c), part) for c, name in enumerate(["Kite", "Rook"]) for i, part in enumerate(parts)]


def test_a_table_brings_ids_and_its_own_split(tmp_path):
    dataset = open_folder(root=table(tmp_path, rows()), shots=2)
    assert dataset.catalog.as_dict() == {"0": "Kite", "1": "Rook"}
    assert keys(dataset.split.test) == {"img/01.png", "img/03.png", "img/11.png", "img/13.png"}
    assert keys(dataset.split.support) == {"img/00.png", "img/02.png", "img/10.png", "img/12.png"}


@pytest.mark.parametrize("columns", ["filename,class_name", "filename,class_name,class_id", "filename,class_name,class_id,split"])
def test_a_table_without_splits_is_split_by_seed(tmp_path, columns):
    width = columns.count(",") + 1
    dataset = open_folder(root=table(tmp_path, [row[:width] for row in rows("")], columns), shots=3)
    assert (len(dataset.split.support), len(dataset.split.test)) == (6, 2)
    assert dataset.catalog.ids == (("0", "1") if width > 2 else ("Kite", "Rook"))


def test_ten_classes_sort_by_number(tmp_path):
    listed = [(f"{c}-{i}.png", f"name {c}", str(c), "") for c in range(12) for i in range(2)]
    assert open_folder(root=table(tmp_path, listed), shots=1).catalog.ids == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("listed", "columns", "complaint"),
    [
        (rows()[:0], "filename,class_name", "lists no image"),
        (rows(), "file,label,x,y", "needs the columns filename and class_name; found file, label"),
        ([*rows(), ("a.png", "", "0", "test")], None, "line 10: .*must not be empty"),
        ([*rows(), ("a.png", "Kite", "0", "tset")], None, "line 10: split 'tset' is none of support, train, training, val"),
        ([*rows(), ("a.png", "Kite", "0", "")], None, "1 rows have no split"),
        ([*rows(), ("a.png", "Rook", "0", "test")], None, "class_id 0 is 'Kite' above and 'Rook' here"),
        ([*rows(), ("a.png", "kite", "7", "train")], None, "read the same"),
        ([*rows(), ("../a.png", "Kite", "0", "test")], None, "must lie inside"),
        ([*rows(), ("/etc/a.png", "Kite", "0", "test")], None, "must lie inside"),
        ([*rows(), rows()[0]], None, r"listed more than once: img/00\.png"),
        ([*rows(), ("a.png", "Hawk", "2", "test")], None, "no support images: Hawk"),
        (rows("test"), None, "all rows are test"),
    ],
)
def test_a_table_that_makes_no_sense_says_where(tmp_path, listed, columns, complaint):
    (tmp_path / "data").mkdir()
    table(tmp_path / "data", listed, columns or "filename,class_name,class_id,split")
    with pytest.raises(DatasetError, match=complaint):
        open_folder(root=tmp_path / "data", shots=2)


def test_a_table_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"filename,class_name\na.png,caf\xe9\n")
    with pytest.raises(DatasetError, match=r"labels\.csv cannot be read as UTF-8"):
        open_folder(root=tmp_path)


def test_a_listed_file_that_is_not_there_is_a_bad_image(tmp_path):
    dataset = open_folder(root=table(tmp_path, [*rows(), ("absent.png", "Kite", "0", "test")]), shots=2)
    assert [str(bad) for bad in dataset.bad_images] == ["absent.png: no such file"]


# --- real data, where this machine has it ------------------------------------------------------------------------------------

SHARED = Path(os.environ.get("FGVR_SHARED_DATA", "/work/shared/data"))


@pytest.mark.skipif(not (SHARED / "grocery_produce50").is_dir(), reason="needs the grocery images")
def test_grocery_opens_with_its_official_split():
    dataset = open_folder(root=SHARED / "grocery_produce50", superclass="fruit or vegetable")
    assert (len(dataset.catalog), len(dataset.split.support), len(dataset.split.test)) == (50, 200, 450)
    assert dataset.bad_images == () and dataset.catalog.find("passion fruit") in dataset.catalog.categories
    with open(SHARED / "grocery_produce50" / "labels.csv", encoding="utf-8") as file:
        listed = {row["filename"]: row for row in csv.DictReader(file)}
    assert all(listed[s.key]["sha256"] == s.sha256 and listed[s.key]["split"] == "query" for s in dataset.split.test)
    assert all(listed[s.key]["class_id"] == s.label and listed[s.key]["split"] == "support" for s in dataset.split.support)


# --- bad images --------------------------------------------------------------------------------------------------------------


def spoil(root):
    (root / "red_kite" / "2.png").write_bytes((root / "red_kite" / "2.png").read_bytes()[:60])
    (root / "Black Kite" / "note.jpg").write_text("not an image")
    return root


def test_bad_images_are_skipped_counted_and_named(tmp_path):
    dataset = open_folder(root=spoil(classes(tmp_path)), shots=2)
    assert [bad.key for bad in dataset.bad_images] == ["Black Kite/note.jpg", "red_kite/2.png"]
    assert "not an image" in dataset.bad_images[0].reason
    assert dataset.notes[0].startswith("2 unusable images were left out, the first: Black Kite/note.jpg")
    assert not keys(dataset.bad_images) & keys((*dataset.split.support, *dataset.split.test))


def test_bad_images_can_be_an_error(tmp_path):
    with pytest.raises(ImageError, match=r"(2\.png|note\.jpg).*on_bad_image=skip"):
        open_folder(root=spoil(classes(tmp_path)), shots=2, on_bad_image="error")


# --- folders that are no dataset ---------------------------------------------------------------------------------------------


def test_a_missing_folder_says_which_key_to_set(tmp_path):
    with pytest.raises(DatasetError, match=r"absent does not exist; set dataset\.root"):
        open_folder(root=tmp_path / "absent")


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(DatasetError, match="is a file"):
        open_folder(root=paint(tmp_path / "a.png", 0))


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DatasetError, match=r"it is empty; expected <class>/\*\.jpg"):
        open_folder(root=tmp_path)


def test_loose_images_are_sent_to_where_they_belong(tmp_path):
    paint(tmp_path / "a.png", 0)
    with pytest.raises(DatasetError, match=r"1 images but no class folders.*mode=discover"):
        open_folder(root=tmp_path)


def test_images_beside_the_class_folders_are_counted(tmp_path):
    paint(classes(tmp_path) / "stray.png", 9)
    [note] = open_folder(root=tmp_path, shots=2).notes
    assert note == "1 images lie in no class folder and were left out, the first: stray.png"


def test_photographs_that_stand_in_every_class_are_the_reason_why_there_are_too_few(tmp_path):
    for name in "ab":
        paint(tmp_path / name / "0.png", 1)
    with pytest.raises(DatasetError, match=r"too few: a \(0\), b \(0\)\. 1 photograph is in two classes .*: a/0\.png and b/0\.png"):
        open_folder(root=tmp_path)


def test_a_table_with_nul_characters_is_no_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"filename,class_name\na\0.png,kite\n")
    with pytest.raises(DatasetError, match="labels.csv cannot be read as UTF-8 .* NUL characters"):
        open_folder(root=tmp_path)


def test_classes_without_images_are_named(tmp_path):
    (classes(tmp_path) / "osprey").mkdir()
    with pytest.raises(DatasetError, match="without images: osprey; add images or remove"):
        open_folder(root=tmp_path)


@pytest.mark.parametrize("where", ["images", "data/set/images"])
def test_some_folders_too_high_is_pointed_out(tmp_path, where):
    classes(tmp_path / where)
    with pytest.raises(DatasetError, match=rf"set dataset\.root=.*{where}"):
        open_folder(root=tmp_path)


def test_one_class_in_a_deep_folder_is_one_class(tmp_path):
    classes(tmp_path / "kite", names=("a",))
    assert open_folder(root=tmp_path, shots=2).catalog.ids == ("kite",)


# --- the index ---------------------------------------------------------------------------------------------------------------


def test_a_second_opening_reads_no_unchanged_image(tmp_path):
    root, cache = classes(tmp_path / "data"), tmp_path / "cache"
    first = open_folder(root=root, shots=2, cache_dir=cache)
    changed = root / "red_kite" / "3.png"
    paint(changed, 77)
    for path in root.rglob("*.png"):
        if path != changed:
            status = path.stat()
            path.write_bytes(bytes(status.st_size))  # no image any more, but of the same size and time
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = open_folder(root=root, shots=2, cache_dir=cache)
    before, after = ({s.key: s.sha256 for s in (*d.split.support, *d.split.test)} for d in (first, second))
    assert {key for key in before if before[key] != after[key]} == {"red_kite/3.png"}


def test_a_damaged_index_costs_time_only(tmp_path):
    root, cache = classes(tmp_path / "data"), tmp_path / "cache"
    first = open_folder(root=root, shots=2, cache_dir=cache)
    for junk in ("{", "[]", '{"red_kite/0.png": 3}'):
        next(cache.glob("*.json")).write_text(junk)
        assert open_folder(root=root, shots=2, cache_dir=cache).split == first.split


def test_a_failure_to_read_that_passes_is_not_remembered(tmp_path, intercept):
    root = classes(tmp_path / "images")

    def refused(read, path):
        if Path(path).name == "2.png":
            raise ImageError(f"{path}: cannot be read (Too many open files)")
        return read(path)

    with intercept(folder, "read_image", refused):
        assert open_folder(root=root, shots=2, cache_dir=tmp_path / "store").bad_images
    assert not open_folder(root=root, shots=2, cache_dir=tmp_path / "store").bad_images
