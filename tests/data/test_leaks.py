"""An image that helped to build the base is not tested unawares."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.data import birds
from fgvr.data.leaks import enforce, exact_overlaps, note, split_overlaps, told, without_near_copies
from fgvr.data.near_duplicates import HashIndex, PerceptualHash, perceptual_hash
from fgvr.data.splits import Split
from fgvr.errors import LeakError
from fgvr.store.cache import MemoryCache
from fgvr.types import Sample

TEST = [Sample(Path(f"/t/{i}"), f"test/{i}.jpg", "a", f"sha{i}") for i in range(30)]
SUPPORT = [Sample(Path(f"/s/{i}"), f"{i}.png", "a", f"sha{i}") for i in range(5, 17)]
SPLIT = Split(tuple(SUPPORT), tuple(TEST))
OVERLAPPING = [f"test/{i}.jpg" for i in range(5, 17)]


def overlaps(split: Split = SPLIT):
    return split_overlaps(split, PerceptualHash(MemoryCache()))


def test_a_clean_test_passes_under_every_policy():
    clean = Split(tuple(SUPPORT), tuple(TEST[:5]))
    assert overlaps(clean) == []
    assert all(enforce(clean, [], policy) == clean for policy in ("error", "drop", "allow"))


def test_offenders_are_counted_and_ten_are_named_with_the_way_out():
    with pytest.raises(LeakError) as error:
        enforce(SPLIT, overlaps(), "error")
    message = str(error.value)
    assert message.startswith("12 of 30 test images resemble") and "test/5.jpg (is support: 5.png)" in message
    assert "test/14.jpg" in message and "test/15.jpg" not in message and "and 2 more" in message
    assert "evaluation.on_overlap (drop leaves them out, allow tests them" in message
    assert [overlap.key for overlap in error.value.offenders] == OVERLAPPING, "the error carries all"


def test_they_are_left_out_or_tested_and_the_note_says_which():
    left = enforce(SPLIT, overlaps(), "drop")
    assert [sample.key for sample in left.test] == [sample.key for sample in TEST if sample.key not in OVERLAPPING]
    assert left.support == SPLIT.support and enforce(SPLIT, overlaps(), "allow") == SPLIT
    notes = [note(12, 30, "drop"), note(12, 30, "allow"), "another note"]
    assert "12 of 30 test images resemble" in notes[0] and "left out" in notes[0] and "tested all the same" in notes[1]
    assert told(notes) == notes[:2]


def test_a_test_of_nothing_but_copies_is_refused():
    with pytest.raises(LeakError, match="no test image would be left"):
        enforce(Split(tuple(SUPPORT), tuple(TEST[5:17])), overlaps(), "drop")


def test_images_without_a_hash_match_nothing():
    assert exact_overlaps([Sample(Path("/t"), "t")], {"": "nothing"}) == []


# --- near copies -------------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, quality: int, scale: float = 1.0) -> bytes:
    """The picture as another program would have saved it."""
    size = (round(image.width * scale), round(image.height * scale))
    buffer = io.BytesIO()
    (image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)).save(buffer, kind, quality=quality)
    return buffer.getvalue()


COPIES = {
    "jpeg75": lambda image: encoded(image, "JPEG", 75),
    "jpeg30": lambda image: encoded(image, "JPEG", 30),
    "webp80": lambda image: encoded(image, "WEBP", 80),
    "twice": lambda image: encoded(image, "PNG", 0, 2.0),
    "half": lambda image: encoded(image, "JPEG", 75, 0.5),
}


def pictures(folder: Path, images: dict[str, bytes], label: str = "a") -> list[Sample]:
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for name, data in images.items():
        (folder / name).write_bytes(data)
        samples.append(Sample(folder / name, f"{folder.name}/{name}", label, hashlib.sha256(data).hexdigest()))
    return samples


def birds_of(difficulty: float, count: int) -> list[Image.Image]:
    world = birds.make_world(seed=9000, difficulty=difficulty)
    return [birds.render(world, i % len(world.species), "test", i // len(world.species)) for i in range(count)]


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG", 0)


def test_ten_planted_overlaps_are_all_named_and_nothing_else(tmp_path: Path):
    drawn = birds_of(1.0, 50)
    support = pictures(tmp_path / "support", {f"{i}.png": png(image) for i, image in enumerate(drawn[:30])})
    planted = {f"exact{i}.png": png(drawn[i]) for i in range(5)}
    planted |= {f"{name}.img": copy(drawn[5 + i]) for i, (name, copy) in enumerate(COPIES.items())}
    clean = {f"clean{i}.png": png(image) for i, image in enumerate(drawn[30:])}
    test = pictures(tmp_path / "test", clean | planted)
    split = Split(tuple(support), tuple(test))
    found = split_overlaps(split, PerceptualHash(MemoryCache()))
    assert [overlap.key for overlap in found] == [f"test/{name}" for name in planted]
    assert str(found[0]) == "test/exact0.png (is support: support/0.png)"
    assert str(found[-1]) == "test/half.img (looks like support: support/9.png)"
    assert [sample.key for sample in enforce(split, found, "drop").test] == [f"test/{name}" for name in clean]
    without_near_copies_of_support = without_near_copies(test, support, PerceptualHash(MemoryCache()))
    assert [sample.key for sample in without_near_copies_of_support] == [f"test/{name}" for name in clean] + [
        f"test/exact{i}.png" for i in range(5)
    ]


@pytest.mark.parametrize("difficulty", [0.0, 0.3, 1.0])
def test_different_birds_raise_no_alarm(difficulty: float):
    hashes = {str(i): perceptual_hash(image) for i, image in enumerate(birds_of(difficulty, 100))}
    assert HashIndex(hashes).query(hashes) == {}


def test_each_stage_alone_is_too_weak():
    """Noise of one colour correlates; a picture and its recoloured self have the same gradients."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray((np.array((200, 30, 30)) + rng.integers(0, 40, (24, 24, 3))).clip(0, 255).astype("uint8")) for _ in range(2)]
    bird = birds_of(1.0, 1)[0]
    recoloured = Image.merge("RGB", [bird.convert("L").point(lambda v, k=k: v * k // 4) for k in (4, 1, 0)])
    pairs = [({"a": perceptual_hash(a)}, {"b": perceptual_hash(b)}) for a, b in ((noise[0], noise[1]), (bird, recoloured))]
    assert [HashIndex(b).query(a) for a, b in pairs] == [{}, {}]


def test_plain_pictures_have_no_hash():
    assert perceptual_hash(Image.new("RGB", (40, 30), (200, 30, 30))) == b""


def test_a_hash_is_remembered_by_content(tmp_path: Path):
    cache = MemoryCache()
    samples = pictures(tmp_path / "some", {f"{i}.png": png(image) for i, image in enumerate(birds_of(1.0, 3))})
    first = PerceptualHash(cache).of(samples)
    for sample in samples:
        Path(str(sample.image)).unlink()
    assert PerceptualHash(cache).of(samples) == first and len(first) == 3
    assert PerceptualHash(MemoryCache()).of(samples) == {}


def test_many_pictures_are_compared_as_a_double_loop_would():
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, (40, 1376), np.uint8)
    these = {f"a{i}": bytes(row) for i, row in enumerate(base)}
    those = {}
    for i, row in enumerate(base):
        changed = row.copy()
        changed[: 32 * (i % 3)] ^= 255  # gradients of every third survive
        those[f"b{i}"] = bytes(changed)
    assert HashIndex(those).query(these) == {f"a{i}": f"b{i}" for i in range(0, 40, 3)}
