"""The rendered birds are files like any other dataset's, drawn once."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fgvr.data import birds
from fgvr.data.datasets import open_birds, open_folder
from fgvr.data.pictures import open_picture
from fgvr.errors import ConfigError, DatasetError
from fgvr.utils.files import sha256_file

SMALL = {"genera": (2, 1), "shots": 2, "test_per_class": 2, "calibration": 1}
spawn = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def dataset(home):
    return open_birds(root=home, **SMALL)


def test_the_birds_lie_in_class_folders_with_a_manifest(dataset, home):
    assert dataset.root.parent == home / "birds" / dataset.world and dataset.world.startswith("world9000-")
    assert {p.name for p in dataset.root.iterdir()} == {"support", "test", "calibration", "manifest.json"}
    name = birds.make_world(9000, (2, 1)).species[0].name
    assert len(list((dataset.root / "support" / f"000_{name}").glob("*.png"))) == 16
    assert not list(home.rglob("*.partial"))


def test_every_role_has_what_was_asked_for(dataset):
    split = dataset.split
    assert (len(split.support), len(split.test), len(split.calibration)) == (6, 6, 3)
    for role in ("support", "test", "calibration"):
        for sample in getattr(split, role):
            assert sample.key.startswith(f"{role}/{sample.label}_") and sample.image == dataset.root / sample.key
            assert sample.sha256 == sha256_file(dataset.root / sample.key)
    assert dataset.catalog.names() == tuple(s.name for s in birds.make_world(9000, (2, 1)).species)
    assert dataset.superclass == "bird" and dataset.notes == ()


def test_a_file_holds_what_the_renderer_draws(dataset):
    world = birds.make_world(9000, (2, 1))
    sample = next(s for s in dataset.split.test if s.label == "001")
    drawn = birds.render(world, 1, "test", int(sample.key[-7:-4]))
    assert open_picture(sample.image).image.tobytes() == drawn.tobytes()


def test_no_attribute_leaves_the_world(dataset):
    text = repr(dataset) + (dataset.root / "manifest.json").read_text()
    assert not any(f"{value} {part}" in text for part, values in birds.ATTRIBUTES.items() for value in values)
    assert "attributes" not in text


@pytest.fixture
def drawn(intercept):
    """Counts drawings."""
    pictures: list[object] = []
    intercept(birds, "render", lambda render, *given: (pictures.append(given), render(*given))[1])
    return pictures


def test_opening_again_draws_no_more_than_a_probe(dataset, home, drawn):
    assert open_birds(root=home, **SMALL) == dataset
    assert len(drawn) <= 1


def test_other_shots_come_from_the_same_files(dataset, home):
    other = open_birds(root=home, **{**SMALL, "shots": 5, "calibration": 3})
    assert other.root == dataset.root and other.split.test == dataset.split.test
    assert set(dataset.split.support) < set(other.split.support)
    redrawn = open_birds(root=home, **SMALL, split_seed=1)
    assert redrawn.root == dataset.root and redrawn.split.test == dataset.split.test
    assert redrawn.split.support != dataset.split.support and redrawn.split.calibration != dataset.split.calibration


@pytest.mark.parametrize("change", [{"seed": 9001}, {"genera": (2, 2)}, {"difficulty": 0.5}])
def test_another_world_lies_elsewhere(dataset, home, change):
    other = open_birds(root=home, **{**SMALL, **change})
    assert other.root != dataset.root and other.world != dataset.world
    same = {s.sha256 for s in other.split.support} & {s.sha256 for s in dataset.split.support}
    assert bool(same) == ("genera" in change)  # smaller genera are the first species of larger ones


def test_more_test_images_are_another_folder_of_the_same_world(dataset, home):
    other = open_birds(root=home, **{**SMALL, "test_per_class": 3})
    assert other.world == dataset.world and other.root != dataset.root
    assert other.split.support != dataset.split.support  # the files lie elsewhere,
    assert [s.sha256 for s in other.split.support] == [s.sha256 for s in dataset.split.support]  # but are the same


def test_a_world_that_may_have_been_trained_on_says_so(home):
    (note,) = open_birds(root=home, **SMALL, seed=5).notes
    assert "may overlap with the training world" in note


def test_files_that_were_damaged_are_left_out_or_refused(tmp_path):
    dataset = open_birds(root=tmp_path, **SMALL)
    (dataset.root / dataset.split.test[0].key).unlink()
    (dataset.root / dataset.split.support[0].key).write_bytes(b"")
    again = open_birds(root=tmp_path, **SMALL)
    assert {bad.key for bad in again.bad_images} == {dataset.split.test[0].key, dataset.split.support[0].key}
    assert len(again.split.support) == 6 and len(again.split.test) == 5 and "2 unusable" in again.notes[0]
    with pytest.raises(DatasetError, match=r"delete .* to draw it again"):
        open_birds(root=tmp_path, **SMALL, on_bad_image="error")


def test_impossible_worlds_are_config_errors(home):
    with pytest.raises(ConfigError, match="difficulty"):
        open_birds(root=home, **SMALL, difficulty=2.0)


def test_the_files_open_as_a_plain_folder_too(dataset):
    plain = open_folder(root=dataset.root, shots=2)
    assert len(plain.catalog) == 3 and {s.sha256 for s in plain.split.test} == {s.sha256 for s in dataset.split.test}


def _draw(root):
    open_birds(root=root, **SMALL)


def test_a_killed_drawing_starts_over(tmp_path):
    killed = spawn.Process(target=_draw, args=(tmp_path,))
    killed.start()
    while not list(tmp_path.rglob("*.png")):
        time.sleep(0.002)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    dataset = open_birds(root=tmp_path, **SMALL)
    assert len(list(dataset.root.rglob("*.png"))) == 3 * (16 + 2 + 16) and dataset.bad_images == ()


def test_two_at_once_draw_once(tmp_path, drawn):
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: open_birds(root=tmp_path, **SMALL), range(2))
    assert first == second and 0 <= len(drawn) - 3 * (16 + 2 + 16) <= 2  # a probe each, at most
