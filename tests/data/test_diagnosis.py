"""The doctor finds each planted fault of a dataset, names the place and the cure; a sound one has none."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import fgvr
from fgvr import modes
from fgvr.data import benchmarks
from fgvr.data.diagnosis import diagnose
from fgvr.session import Session
from fgvr.types import Figures, Finding

from .archives import TREES, Tree, photo

SOUND = {"cub200", "birdsnap500", "ucf101", "imagenet1k", "flowers102", "cars196_by_folder", "caltech101"}


@pytest.fixture
def figures(monkeypatch):
    """The official figures of the small trees, so that a sound one is sound."""
    for name, known in list(benchmarks.BENCHMARKS.items()):
        small = replace(known, figures=Figures(3, *((12, 6) if known.figures.test else (18, 0))))
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, small)


def look(tree: Tree, **wishes) -> dict[str, Finding]:
    """All findings by topic."""
    found = list(diagnose(lambda: benchmarks.open_benchmark(name=tree.name, root=tree.root, **{"shots": 2, **wishes})))
    assert len({finding.topic for finding in found}) == len(found)
    return {finding.topic: finding for finding in found}


def ill(tree: Tree, **wishes) -> dict[str, str]:
    """Cure by topic, of what is not well."""
    return {topic: finding.cure for topic, finding in look(tree, **wishes).items() if not finding.well}


@pytest.fixture
def tree(tmp_path, figures) -> Callable[[str], Tree]:
    return lambda name: TREES[name](tmp_path / name)


@pytest.mark.parametrize("name", sorted(SOUND))
def test_a_sound_archive_has_no_fault(name, tree):
    assert ill(tree(name)) == {}


def cub(tree: Callable[[str], Tree]) -> tuple[Tree, Path, list[Path]]:
    """A small CUB, its folder, the pictures of its first class."""
    made = tree("cub200")
    base = made.root / "CUB_200_2011"
    return made, base, sorted((base / "images" / "001.Black_footed_Albatross").iterdir())


def test_a_missing_file(tree):
    made, _, pictures = cub(tree)
    pictures[1].unlink()
    assert f"{pictures[1].name} is not there; correct the list, or extract the archive again" in ill(made)["files"]


def test_a_renamed_suffix(tree):
    made, _, pictures = cub(tree)
    pictures[1].rename(pictures[1].with_suffix(".JPEG"))
    assert f"there is {pictures[1].stem}.JPEG: rename it back" in ill(made)["files"]


def test_a_renamed_folder(tree):
    made, base, _ = cub(tree)
    (base / "images" / "002.Laysan_Albatross").rename(base / "images" / "002.Layson_Albatross")
    cure = ill(made)["dataset"]
    assert "Laysan Albatross (0)" in cure and "Layson_Albatross: rename it back" in cure


def test_an_empty_class(tree):
    made, _, pictures = cub(tree)
    for path in pictures:
        path.unlink()
    assert "too few: Black-footed Albatross (0)" in ill(made)["dataset"]


def test_a_class_without_test_images(tree):
    made, _, pictures = cub(tree)
    for path in pictures[4:]:
        path.unlink()
    assert ill(made)["classes tested"] == "no test image of: Black-footed Albatross"


def test_swapped_classes_in_the_class_list(tree):
    made, base, _ = cub(tree)
    path = base / "classes.txt"
    path.write_text("1 002.Laysan_Albatross\n2 001.Black_footed_Albatross\n22 022.Chuck_will_Widow\n")
    assert "class 1 is Black-footed Albatross officially, but the archive calls it 002.Laysan_Albatross (2 such" in ill(made)["dataset"]


def test_a_class_under_an_unknown_name(tree):
    made, base, _ = cub(tree)
    path = base / "classes.txt"
    path.write_text(path.read_text().replace("002.Laysan_Albatross", "002.Laysan_Goose"))
    assert "class 2 is Laysan Albatross, but the archive calls it 002.Laysan_Goose" in ill(made)["class order"]


def test_classes_in_another_order(tree):
    made, base, _ = cub(tree)
    path = base / "classes.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert "class 22 stands where 1 should" in ill(made)["class order"]


def test_a_label_out_of_range(tree):
    made, base, _ = cub(tree)
    path = base / "image_class_labels.txt"
    path.write_text(path.read_text().replace("3 1\n", "3 201\n"))
    assert "images.txt, line 3: class '201' is none of the 3 listed (1 to 22)" in ill(made)["dataset"]


def test_a_duplicate_class_name(tree):
    made = tree("birdsnap500")
    path = made.root / "birdsnap" / "species.txt"
    path.write_text(path.read_text().replace("Acorn Woodpecker", "Acadian Flycatcher"))
    assert "read the same as 'Acadian Flycatcher'; rename one or merge them" in ill(made)["dataset"]


def test_a_train_image_in_the_test(tree):
    made, _, pictures = cub(tree)
    shutil.copy(pictures[0], pictures[5])
    for wishes in ({"shots": 2}, {"shots": 4}):
        cure = ill(made, **wishes)["train apart from test, exact"]
        assert pictures[5].name in cure and pictures[0].name in cure
    assert pictures[5].name in ill(made, shots=4)["test apart from support, exact"]


@pytest.mark.parametrize("quality", [75, 30])
def test_a_near_copy_in_the_test(tree, quality):
    made, _, pictures = cub(tree)
    smooth = Image.radial_gradient("L").resize((120, 90)).convert("RGB")
    smooth.paste((200, 30, 30), (20, 10, 60, 80))
    smooth.save(pictures[0], quality=95)
    smooth.resize((60, 45)).save(pictures[5], quality=quality)
    found = ill(made, shots=4)
    for topic in ("train apart from test, near", "test apart from support, near"):
        assert f"{pictures[5].name} (looks like images/001.Black_footed_Albatross/{pictures[0].name})" in found[topic]
    assert set(found) == {"train apart from test, near", "test apart from support, near"}


def test_one_image_under_two_classes(tree):
    made, base, pictures = cub(tree)
    other = sorted((base / "images" / "002.Laysan_Albatross").iterdir())
    shutil.copy(pictures[0], other[1])
    cure = ill(made)["one class per image"]
    assert pictures[0].name in cure and other[1].name in cure


def test_a_truncated_file(tree):
    made, _, pictures = cub(tree)
    pictures[2].write_bytes(pictures[2].read_bytes()[:300])
    found = ill(made)
    assert pictures[2].name in found["readable"] and set(found) == {"readable"}


def test_a_wrong_count(tree):
    made = tree("pets37")
    path = made.root / "annotations" / "test.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "5 images to test instead of 6: it is a part, or another version; compare with https" in ill(made)["official figures"]


def test_a_class_of_the_wrong_size(tree, monkeypatch):
    made = tree("food101")
    known = benchmarks.BENCHMARKS["food101"]
    monkeypatch.setitem(benchmarks.BENCHMARKS, "food101", replace(known, figures=replace(known.figures, train_each=5)))
    assert "apple pie has 4 images to learn from instead of 5 (3 such classes)" in ill(made)["official figures"]


def test_bytes_that_are_not_the_published_ones(tree):
    made = tree("birdsnap500")
    path = made.root / "birdsnap" / "images" / "acorn_woodpecker" / "100011.jpg"
    Image.open(photo(path)).save(path, "JPEG", quality=60)
    assert "not the published bytes: images/acorn_woodpecker/100011.jpg" in ill(made)["checksums"]


def test_a_missing_archive(tmp_path):
    [finding] = diagnose(lambda: benchmarks.open_benchmark(name="pets37", root=tmp_path / "absent"))
    assert not finding.well and "robots.ox.ac.uk" in finding.cure and "does not exist" in finding.cure


def test_the_figures_are_the_official_ones(tmp_path):
    """Without the fixture: a small tree is told that it is only a part."""
    assert "3 classes instead of 200" in ill(TREES["cub200"](tmp_path))["official figures"]


def test_the_doctors_mode_shows_them(tmp_path, capsys):
    made = TREES["cub200"](tmp_path / "tree")
    cfg = fgvr.load_config("mode=doctor", "dataset=cub200", f"dataset.root={made.root}", "dataset.shots=2", "models=fake")
    found = {finding.topic: finding for finding in modes.perform(cfg).findings}
    assert found["class order"].well and found["files"].well and not found["official figures"].well
    assert Session(cfg).dataset.split.split_hash in found["looked at"].detail
