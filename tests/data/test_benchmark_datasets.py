"""Each benchmark dataset is read from a tree like its archive: official classes, official order, official split."""

import json
import os
from pathlib import Path

import pytest

import fgvr
from fgvr.data import benchmarks
from fgvr.data.benchmarks import BENCHMARKS, official_names, open_benchmark, spoken
from fgvr.errors import ConfigError, DatasetError
from fgvr.session import Session
from fgvr.utils.paths import config_dir
from fgvr.utils.text import normalise_name

from .archives import CARS, TREES, Tree, photo, text


def opened(tree: Tree, **wishes):
    return open_benchmark(name=tree.name, root=tree.root, **wishes)


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_an_archive_is_read_as_its_makers_meant(make, tmp_path):
    tree = make(tmp_path)
    dataset = opened(tree, shots=2 if tree.official else 4)
    listing = dataset.listing
    assert listing is not None
    assert dataset.catalog.ids == tree.ids and dataset.catalog.names() == tree.names
    assert listing.official == tree.official and dataset.bad_images == ()
    assert len(listing.pool) == (tree.train if tree.official else tree.train + tree.test) and len(dataset.split.test) == tree.test
    assert all(Path(s.image).is_file() and s.sha256 for _, s in dataset.split)
    assert {s.label for s in dataset.split.support} == {s.label for s in dataset.split.test} == set(tree.ids)
    if tree.official:
        assert tree.a_test in {s.key for s in dataset.split.test}
        assert next(s.label for s in dataset.split.test if s.key == tree.a_test) == tree.ids[0]
        assert dataset.world == "official split"
    else:
        assert any("no official split" in note for note in dataset.notes) and dataset.world == "seeded split"
    for alias in tree.aliases:
        assert dataset.catalog.find(alias) is dataset.catalog[tree.ids[0]]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_option_composes_and_opens_its_tree(name, tmp_path):
    tree = TREES[name](tmp_path / "tree")
    cfg = fgvr.load_config(f"dataset={name}", f"dataset.root={tree.root}", "dataset.shots=3", "dataset.test_per_class=1")
    dataset = Session(cfg).dataset
    assert dataset.name == name and (len(dataset.split.support), len(dataset.split.test)) == (9, 3)


def test_the_table_and_the_options_are_the_same():
    written = {path.stem for path in (config_dir() / "dataset").glob("*.yaml")}
    assert written == {*BENCHMARKS, "birds", "folder", "produce", "webdataset", "parquet", "hf"} and set(BENCHMARKS) <= set(TREES)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_archive_says_what_is_expected_and_where_it_is_published(name, tmp_path):
    with pytest.raises(DatasetError) as answer:
        open_benchmark(name=name, root=tmp_path / "absent")
    said = str(answer.value)
    assert BENCHMARKS[name].page in said and "missing: " in said and "dataset.root" in said and "does not exist" in said


def test_a_missing_part_is_named(tmp_path):
    tree = TREES["cub200"](tmp_path)
    (tmp_path / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(DatasetError, match=r"lacks part of CUB-200-2011; missing: train_test_split\.txt\."):
        opened(tree)
    with pytest.raises(DatasetError, match="is not the archive of Oxford-IIIT Pets"):
        open_benchmark(name="pets37", root=tmp_path)


def test_cars_without_test_labels_say_so(tmp_path):
    tree = TREES["cars196"](tmp_path)
    (tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DatasetError, match=r"lacks cars_test_annos_withlabels\.mat"):
        opened(tree)


def test_pictures_in_tables_are_unpacked_once_and_whole(tmp_path):
    tree = TREES["cars196_parquet"](tmp_path)
    (tmp_path / "unpacked.partial" / "train").mkdir(parents=True)  # of a run that was killed
    first = opened(tree)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "unpacked").rglob("*.jpg")}
    assert len(before) == 18 and not (tmp_path / "unpacked.partial").exists()
    assert opened(tree).split.split_hash == first.split.split_hash
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_tables_may_leave_the_class_names_to_the_first_or_list_them_in_another_order(tmp_path):
    import pyarrow.parquet as pq

    tree = TREES["cars196_parquet"](tmp_path / "whole")
    whole = [*opened(tree).listing.test]
    for description in (None, [CARS[-1], *CARS[:-1]]):
        tree = TREES["cars196_parquet"](tmp_path / f"other-{description is None}")
        [file] = (tree.root / "data").glob("test-*.parquet")
        table = pq.read_table(file)
        told = None if description is None else {"huggingface": json.dumps({"info": {"features": {"label": {"names": description}}}})}
        if description is not None:
            table = table.set_column(1, "label", [[(label + 1) % len(CARS) for label in table["label"].to_pylist()]])
        pq.write_table(table.replace_schema_metadata(told), file)
        assert [(s.key, s.label) for s in opened(tree).listing.test] == [(s.key, s.label) for s in whole]


def test_a_table_of_other_classes_and_a_damaged_one_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for kept, complaint in ((True, "row 0: z is none of the 1 classes"), (False, r"test-0\.parquet is damaged \(.*\); fetch it again")):
        (tmp_path / str(kept) / "data").mkdir(parents=True)
        pq.write_table(named(pa.table({"image": [b"x"], "label": [0]})), tmp_path / str(kept) / "data" / "train-0.parquet")
        other = tmp_path / str(kept) / "data" / "test-0.parquet"
        pq.write_table(pa.table({"image": [b"x"], "label": ["z"]}), other)
        if not kept:
            other.write_bytes(other.read_bytes()[:-5])
        with pytest.raises(DatasetError, match=complaint):
            open_benchmark(name="cars196", root=tmp_path / str(kept))


def test_tables_without_class_names_or_pictures_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    for complaint, table in (
        ("does not say what its labels mean", pa.table({"image": [b"x"], "label": [0]})),
        ("has no column image", named(pa.table({"label": [0]}))),
        ("row 0: no picture in it", named(pa.table({"image": [{"path": "a.jpg"}], "label": [0]}))),
    ):
        pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
        with pytest.raises(DatasetError, match=complaint):
            open_benchmark(name="cars196", root=tmp_path)
        assert not (tmp_path / "unpacked").exists()


def named(table):
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a"]}}}})})


# --- names -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(benchmarks.__file__).parent.glob("names/*.tsv")))
def test_official_names_are_all_there_once(name):
    names = official_names(name)
    assert len(names) == BENCHMARKS[name].figures.classes
    assert len({entry.name.casefold() for entry in names.values()}) == len(names)
    assert all(entry.name == entry.name.strip() and "_" not in entry.name for entry in names.values())


def test_folders_misspelt_are_spelt_right_in_prompts_and_still_understood(tmp_path):
    catalog = opened(TREES["cub200"](tmp_path), shots=1).catalog
    found = catalog.find("022.Chuck_will_Widow")
    assert found is not None and found.name == "Chuck-will's-widow"
    known = {entry.name for name in ("cub200", "dogs120") for entry in official_names(name).values()}
    assert known & {"Arctic Tern", "Pekingese", "German Shepherd", "Curly-coated Retriever", "Ibizan Hound"} and not known & {
        "Artic Tern", "Chihuaha", "German Shepard", "Curly-coater Retriever", "Ibizian Hound", "Chuck-will Widow", "Forsters Tern",
    }  # fmt: skip


def test_cats_and_dogs_have_their_own_superclass(tmp_path):
    assert [c.superclass for c in opened(TREES["pets37"](tmp_path), shots=1).catalog] == ["cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("own", "name"),
    [("/c/church/indoor", "indoor church"), ("ApplyEyeMakeup", "apply eye makeup"), ("DHC-8-100", "DHC-8-100"), ("wild_cat", "wild cat"),
     ("Allen's Hummingbird", "Allen's Hummingbird"), ("TaiChi", "tai chi"), ("n02085620-Chihuahua", "Chihuahua")],
)  # fmt: skip
def test_archive_names_become_words(own, name):
    assert spoken(own) == name


# --- lists that contradict themselves ----------------------------------------------------------------------------------------


def test_a_label_without_a_class_is_named_with_file_and_line(tmp_path):
    tree = TREES["aircraft100"](tmp_path)
    path = tmp_path / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt"
    path.write_text(path.read_text() + "1999999 F-99Z\n")
    with pytest.raises(DatasetError, match=r"images_variant_test\.txt, line 7: class 'F-99Z' is none of the 3 listed"):
        opened(tree)


def test_an_image_in_both_parts_is_named(tmp_path):
    tree = TREES["dtd47"](tmp_path)
    path = tmp_path / "dtd" / "labels" / "test1.txt"
    path.write_text(path.read_text() + "banded/banded_0000.jpg\n")
    with pytest.raises(DatasetError, match=r"banded_0000\.jpg is listed before, in labels/train1\.txt, line 1"):
        opened(tree)


def test_a_damaged_matlab_file_is_named(tmp_path):
    tree = TREES["flowers102"](tmp_path)
    (tmp_path / "flowers-102" / "setid.mat").write_bytes(b"not MATLAB at all" * 20)
    with pytest.raises(DatasetError, match=r"setid\.mat cannot be read as a MATLAB file"):
        opened(tree)


def test_another_datasets_classes_are_refused(tmp_path):
    tree = TREES["food101"](tmp_path)
    path = tmp_path / "food-101" / "meta" / "classes.txt"
    path.write_text(path.read_text() + "stone_soup\n")
    with pytest.raises(DatasetError, match="Food-101 has no class stone_soup"):
        opened(tree)


def test_the_other_official_partitions(tmp_path):
    tree = TREES["dtd47"](tmp_path)
    dataset = opened(tree, partition=2, shots=1)
    assert dataset.world == "official split 2" and len(dataset.split.test) == 6
    assert "images/banded/banded_0000.jpg" in {s.key for s in dataset.split.test}
    with pytest.raises(ConfigError, match=r"partition=11: Describable Textures has 10"):
        opened(tree, partition=11)


# --- split files -------------------------------------------------------------------------------------------------------------


def coop(tree: Tree, path: Path, classes=("banded", "woven")) -> Path:
    entry = lambda name, i, label: [f"{name}/{name}_{i:04d}.jpg", label, name]  # noqa: E731
    parts = {"train": (5, 4), "val": (3,), "test": (0, 1, 2)}
    path.write_text(json.dumps({p: [entry(n, i, c) for c, n in enumerate(classes) for i in found] for p, found in parts.items()}))
    return path


def test_a_split_of_coop_replaces_the_official_one(tmp_path):
    tree = TREES["dtd47"](tmp_path / "tree")
    path = coop(tree, tmp_path / "split_zhou_DescribableTextures.json")
    dataset = opened(tree, shots=3, split_file=path)
    assert dataset.world == "split_zhou_DescribableTextures" and dataset.catalog.ids == ("banded", "woven")
    assert {s.key for s in dataset.split.support} == {f"images/{n}/{n}_{i:04d}.jpg" for n in ("banded", "woven") for i in (3, 4, 5)}
    assert {s.key for s in dataset.split.test} == {f"images/{n}/{n}_{i:04d}.jpg" for n in ("banded", "woven") for i in (0, 1, 2)}


def test_a_split_in_a_table_and_a_dataset_without_its_own(tmp_path):
    tree = TREES["eurosat10"](tmp_path / "tree")
    rows = [f"{part},{name}/{name}_{i}.jpg" for name in tree.ids for i, part in ((1, "train"), (2, "val"), (3, "test"))]
    text(tmp_path / "split.csv", "split,filename", *rows)
    dataset = opened(tree, shots=2, split_file=tmp_path / "split.csv")
    assert dataset.listing.official and {s.key for s in dataset.split.test} == {f"{name}/{name}_3.jpg" for name in tree.ids}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: d["test"].append(["woven/absent.jpg", 1, "woven"]), "which the archive does not"),
        (lambda d: d["test"].append(d["train"][0]), "twice"),
        (lambda d: d["test"][0].__setitem__(1, 1), "has label 1, but the archive's class is banded"),
        (lambda d: d.__setitem__("test", []), "0 to test; both are needed"),
        (lambda d: d.__setitem__("exam", [["a", 0, "b"]]), "part 'exam' is none of"),
        (lambda d: d.__setitem__("test", 7), "is no split file"),
    ],
)
def test_a_split_file_of_something_else_is_refused(tmp_path, spoil, complaint):
    tree = TREES["dtd47"](tmp_path / "tree")
    path = coop(tree, tmp_path / "split.json")
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=complaint):
        opened(tree, split_file=path)


@pytest.mark.parametrize("row, complaint", [("train", "lists , which"), ("train," + "x" * 200_000, "is no split file")])
def test_a_row_of_a_split_file_that_names_no_image_is_refused(tmp_path, row, complaint):
    tree = TREES["dtd47"](tmp_path / "tree")
    text(tmp_path / "split.csv", "split,filename", row)
    with pytest.raises(DatasetError, match=complaint):
        opened(tree, split_file=tmp_path / "split.csv")


def test_a_split_file_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        opened(TREES["dtd47"](tmp_path / "tree"), split_file=tmp_path / "absent.json")


# --- the real split files, where this machine has them -----------------------------------------------------------------------

SHARED = Path(os.environ.get("FGVR_SHARED_DATA", "/work/shared/data")) / "coop_splits"
REAL = {
    "OxfordPets": ("pets37", "images/", (3_680, 3_669)),
    "StanfordCars": ("cars196", "", (8_144, 8_041)),
    "OxfordFlowers": ("flowers102", "jpg/", (5_726, 2_463)),
    "DescribableTextures": ("dtd47", "images/", (3_948, 1_692)),
    "Caltech101": ("caltech101", "101_ObjectCategories/", (5_777, 2_465)),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs CoOp's split files")
@pytest.mark.parametrize("file", REAL)
def test_our_catalogues_agree_with_coops_labels_and_the_split_is_taken_whole(file):
    from fgvr.data.archives import Contents, Row
    from fgvr.data.benchmarks import make_listing

    name, pictures, counts = REAL[file]
    path = SHARED / f"split_zhou_{file}.json"
    entries = [entry for part in json.loads(path.read_text()).values() for entry in part]
    ids = list(official_names(name))
    by_name = {normalise_name(spelling): id for id, n in official_names(name).items() for spelling in (n.name, *n.aliases)}
    label = {entry[1]: by_name[normalise_name(entry[2])] for entry in entries}
    if name != "caltech101":
        assert label == dict(enumerate(ids)), "CoOp counts our official order from 0"
    contents = Contents([(id, id) for id in ids], [Row(pictures + e[0], label[e[1]], False, "") for e in entries], official=False)
    listing = benchmarks.apply_split_file(make_listing(name, BENCHMARKS[name], contents, Path("/nowhere")), path, pictures)
    assert (len(listing.pool), len(listing.test)) == counts


# --- few-shot manifests ------------------------------------------------------------------------------------------------------


def test_manifests_of_every_k_and_seed_are_fixed_and_nested(tmp_path):
    root = tmp_path / "data"
    for name in ("AnnualCrop", "Forest", "River"):
        for i in range(18):
            photo(root / name / f"{name}_{i}.jpg")
    chosen = {
        (k, seed): {
            s.key for s in open_benchmark(name="eurosat10", root=root, shots=k, split_seed=seed, cache_dir=tmp_path / "c").split.support
        }
        for k in (1, 2, 4, 8, 16)
        for seed in (0, 1, 2)
    }
    for (k, seed), keys in chosen.items():
        assert len(keys) == 3 * k
        assert all(keys <= chosen[more, seed] for more in (1, 2, 4, 8, 16) if more > k)
    assert len({frozenset(chosen[4, seed]) for seed in (0, 1, 2)}) == 3
    again = open_benchmark(name="eurosat10", root=root, shots=4, split_seed=1).split
    assert {s.key for s in again.support} == chosen[4, 1]
    assert chosen[1, 0] == {"AnnualCrop/AnnualCrop_12.jpg", "Forest/Forest_13.jpg", "River/River_15.jpg"}, "the same on every machine"


def test_long_tails_fall_from_shots_to_tail_shots(tmp_path):
    tree = TREES["pets37"](tmp_path)
    split = opened(tree, shots=4, tail_shots=1).split
    counts = sorted(sum(s.label == id for s in split.support) for id in tree.ids)
    assert counts == [1, 2, 4] and len(split.test) == 6
    other = [
        [sum(s.label == id for s in opened(tree, shots=4, tail_shots=1, split_seed=n).split.support) for id in tree.ids] for n in range(4)
    ]
    assert len(set(map(tuple, other))) > 1 and all(sorted(row) == [1, 2, 4] for row in other)
    with pytest.raises(ConfigError, match=r"tail_shots must be from 1 to dataset\.shots=4, not 5"):
        opened(tree, shots=4, tail_shots=5)
