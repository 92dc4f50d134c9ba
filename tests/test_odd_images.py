"""Whatever lies in a folder, `classify` answers it or names it, and none stops the others: by the trained tiny models, end to end."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr import modes
from fgvr.cli import main
from fgvr.runtime.pool import close_shared

EDGE_CASES = Path(__file__).parents[2] / "shared" / "data" / "pets3" / "edge_cases"
WORLD = ("dataset.genera=[2,2]", "dataset.shots=2", "dataset.test_per_class=1", "dataset.calibration=0")


def bird(size: tuple[int, int] = (112, 112)) -> Image.Image:
    """A smooth colourful picture."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def bomb(path: Path) -> None:
    """A valid PNG header that promises 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""))


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    bird((200, 100)).save(path, exif=exif)


def truncated(path: Path) -> None:
    bird((300, 300)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


ANSWERED: dict[str, Callable[[Path], object]] = {
    "rgba.png": lambda p: bird().convert("RGBA").save(p),
    "palette.gif": lambda p: bird().quantize(16).save(p),
    "animation.gif": lambda p: bird().save(p, save_all=True, append_images=[Image.new("RGB", (112, 112))]),
    "grey.jpg": lambda p: bird().convert("L").save(p),
    "cmyk.jpg": lambda p: bird().convert("CMYK").save(p),
    "sixteen bit.png": lambda p: Image.fromarray((np.arange(112 * 112).reshape(112, 112) * 5 % 65536).astype(np.uint16)).save(p),
    "on its side.jpg": rotated,
    "one pixel.png": lambda p: Image.new("RGB", (1, 1), "red").save(p),
    "very wide.png": lambda p: bird((3000, 10)).save(p),
    "huge.png": lambda p: Image.new("RGB", (9000, 9000), "green").save(p, compress_level=1),
    "wrong suffix é=[1].jpg": lambda p: bird().save(p, "PNG"),
    "one bit.bmp": lambda p: bird().convert("1").save(p),
}
NAMED: dict[str, Callable[[Path], object]] = {
    "bomb.png": bomb,
    "empty.png": lambda p: p.touch(),
    "not a picture.jpg": lambda p: p.write_text("hello"),
    "truncated.jpg": truncated,
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A home with a base for all of them."""
    return f"paths.home={tmp_path_factory.mktemp('known')}"


@pytest.fixture
def classify(known: str, caplog: pytest.LogCaptureFixture):
    def run(folder: Path) -> tuple[dict[str, fgvr.Prediction], str]:
        caplog.clear()
        cfg = fgvr.load_config("mode=classify", f"image='{folder}'", *WORLD, known)
        with caplog.at_level("ERROR", logger="fgvr"):
            return {prediction.image: prediction for prediction in modes.perform(cfg)}, caplog.text

    close_shared()
    yield run
    close_shared()


def test_every_odd_file_is_answered_or_named_and_none_stops_the_others(classify, tmp_path: Path) -> None:
    folder = tmp_path / "odd ones"
    folder.mkdir()
    for name, write in (ANSWERED | NAMED).items():
        write(folder / name)
    (folder / "notes.txt").write_text("not asked for")
    os.symlink(folder / "nowhere.png", folder / "dangling.png")
    answered, errors = classify(folder)
    assert set(answered) == set(ANSWERED)
    assert [name for name in NAMED if name not in errors] == []
    assert errors.count("\n") == len(NAMED)


@pytest.mark.skipif(not EDGE_CASES.is_dir(), reason=f"{EDGE_CASES} is not on this machine")
def test_the_real_edge_cases_are_answered(classify) -> None:
    answered, errors = classify(EDGE_CASES)
    assert set(answered) == {path.name for path in EDGE_CASES.glob("*.jpg")}
    assert errors == ""


def test_very_long_pictures_are_thought_over_beside_the_others(known: str, tmp_path: Path) -> None:
    folder = tmp_path / "asked"
    folder.mkdir()
    for name, size in (("wide.png", (3000, 10)), ("tall.png", (1, 5000)), ("column.png", (1, 1_000_000)), ("bird.png", (112, 112))):
        Image.new("RGB", size, "green").save(folder / name)
    cfg = fgvr.load_config("mode=classify", f"image='{folder}'", "trigger=always", *WORLD, known)
    try:
        answered = modes.perform(cfg)
    finally:
        close_shared()
    assert sorted(p.image for p in answered) == ["bird.png", "column.png", "tall.png", "wide.png"]
    assert all(p.slow is not None for p in answered)


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line and in a notebook; the server's 400 is in tests/server/test_bad_bodies.py."""
    for name in ("red bird", "blue bird"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for seed in range(4):
            noise = np.random.default_rng([len(name), seed]).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((96, 96)).save(tmp_path / "birds" / name / f"{seed}.png")
    words = ["dataset=folder", f"dataset.root='{tmp_path / 'birds'}'", "dataset.shots=2", "dataset.calibration=0", "trigger=always"]
    words += ["models=tiny", "models.force=true", f"dataset.superclass='{'red bird ' * 3000}'"]
    try:
        assert main(["mode=classify", f"image='{tmp_path / 'birds' / 'red bird' / '3.png'}'", *words]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "more than the 4,096 tokens of tiny's context" in said and "Traceback" not in said
        with pytest.raises(fgvr.ConfigError, match="more than the 4,096 tokens of tiny's context"):
            fgvr.build_knowledge_base(fgvr.load_config(*words))
    finally:
        close_shared()
