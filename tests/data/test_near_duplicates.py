"""Near duplicates are found by what the doctor and the leak guard share; different pictures of one species are not."""

import hashlib
import io
from dataclasses import replace

import pytest
from PIL import Image

from fgvr.data import birds
from fgvr.data.leaks import near_overlaps
from fgvr.data.near_duplicates import HashIndex, PerceptualHash, duplicate_groups
from fgvr.store.cache import NoCache
from fgvr.types import Sample

WORLD = birds.make_world(difficulty=0.3)


def flock(count, split="train"):
    return [birds.render(WORLD, i % len(WORLD.species), split, i) for i in range(count)]


def samples(pictures, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return [Sample(path, path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def near_copies(tests, learnt):
    return near_overlaps(tests, {sample.sha256: sample.key for sample in learnt}, learnt, PerceptualHash(NoCache()))


def recoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: recoded(p, "JPEG", quality=75),
        lambda p: recoded(p, "JPEG", quality=30),
        lambda p: recoded(p, "WEBP", quality=80),
        lambda p: p.resize((224, 224)),
        lambda p: recoded(p.resize((56, 56)), "JPEG", quality=75),
    ],
    ids=["jpeg 75", "jpeg 30", "webp 80", "twice the size", "half the size, jpeg 75"],
)
def test_a_changed_copy_is_found_among_others(change, tmp_path):
    learnt = samples(flock(40), tmp_path)
    copy = tmp_path / "copy.png"
    change(flock(8)[7]).save(copy)
    found = near_copies([Sample(copy, "copy", sha256="other")], learnt)
    assert [(overlap.key, overlap.where, overlap.near) for overlap in found] == [("copy", "7.png", True)]


def test_different_birds_raise_no_alarm(tmp_path):
    hashes = PerceptualHash(NoCache()).of(samples(flock(160), tmp_path))
    assert len(hashes) == 160 and HashIndex(hashes).query(hashes) == {}


def test_exact_copies_and_nothing_are_no_near_copies(tmp_path):
    some = samples(flock(2), tmp_path)
    assert near_copies(some, some) == [] and near_copies([], some) == [] and near_copies(some, []) == []


def test_copies_of_one_class_are_one_family_however_they_were_saved(tmp_path):
    first, second, third = flock(3)
    pictures = [first, second, recoded(first, "JPEG", quality=75), third, recoded(first.resize((56, 56)), "JPEG", quality=75), first]
    labelled = [replace(sample, label="a") for sample in samples(pictures, tmp_path)]
    assert duplicate_groups(labelled, PerceptualHash(NoCache())) == [0, 1, 0, 3, 0, 0]
    other = [replace(sample, label=str(i)) for i, sample in enumerate(labelled)]
    assert duplicate_groups(other, PerceptualHash(NoCache())) == [0, 1, 2, 3, 4, 5], "what another class shows is another matter"
