"""Photographs: fgvr's fast path against the loop that one would write with timm (batches of 16: decode, then encode; two threads).

Both recognise the same files, which are the shipped photographs of produce under new names, each cropped by a few pixels. Nothing is
remembered from one turn to the next. What counts is the time by the clock, for fgvr's decoding and encoding overlap.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

import fgvr
from benchmarks.race import Races, Way, race
from fgvr.session import Session
from fgvr.types import Sample
from fgvr.utils.progress import track

MUST, BATCH, THREADS = 1.5, 16, 2


def measure(*, models: str, repeat: int, size: int = 640) -> Races:
    """`size`: photographs; `models` plays no part, since the loop has timm's own EfficientNet-Lite0."""
    with tempfile.TemporaryDirectory(prefix="fgvr-photos-") as folder:
        session = Session(
            fgvr.load_config("dataset=produce", "models=photos", "trigger=never", "store.enabled=false", f"paths.home={folder}")
        )
        samples = _copies([sample.image for sample in session.dataset.split.test], Path(folder) / "photos", size)
        recognizer, before = session.recognizer, psutil.Process().memory_info().rss
        peaks: list[int] = []

        def ours() -> dict[str, float]:
            found = 0
            for predictions in recognizer.stream(samples):
                found += len(predictions)
                peaks.append(psutil.Process().memory_info().rss)
            return {"images": found}

        plain = _Loop(session)
        laps = race([Way("plain timm loop", lambda: plain(samples)), Way("fgvr", ours)], items=len(samples), repeat=repeat)
    loop, fast = laps
    ahead = loop.wall.median / fast.wall.median
    half = len(peaks) // 2
    growth = max(peaks[half:]) / max(peaks[:half])
    notes = [
        f"fgvr is {ahead:.2f} times as fast by the clock (at least {MUST}): {'met' if ahead >= MUST else 'MISSED'}",
        f"resident memory: {before / 2**20:.0f} MiB before, at most {max(peaks) / 2**20:.0f}; second half over first half {growth:.3f}",
    ]
    return Races({f"{size} photographs of 288 pixels": laps}, notes, {"ahead": ahead, "rss_growth": growth})


class _Loop:
    """The straightforward way: the session's own encoder module, timm's transform, class means."""

    def __init__(self, session: Session) -> None:
        import timm
        import torch
        from timm.data import create_transform, resolve_data_config

        torch.set_num_threads(THREADS)
        self._module = timm.create_model(
            "tf_efficientnet_lite0", pretrained=False, num_classes=0
        ).eval()  # the time does not depend on weights
        self._transform = create_transform(**resolve_data_config({}, model=self._module), is_training=False)
        self._means = session.knowledge.prototypes.image

    def __call__(self, samples: Sequence[Sample]) -> dict[str, float]:
        import torch

        named = 0
        for start in range(0, len(samples), BATCH):
            pictures = [Image.open(str(sample.image)).convert("RGB") for sample in samples[start : start + BATCH]]
            with torch.inference_mode():
                vectors = self._module(torch.stack([self._transform(picture) for picture in pictures])).numpy()
            named += len((vectors @ self._means.T).argmax(axis=1))
        return {"images": named}


def _copies(files: Sequence[object], folder: Path, count: int) -> list[Sample]:
    """`count` files of their own content."""
    folder.mkdir()
    random, samples = np.random.default_rng(0), []
    for i in track(range(count), "photographs"):
        with Image.open(str(files[i % len(files)])) as picture:
            left, top, right, bottom = random.integers(0, 12, 4).tolist()
            path = folder / f"{i:05}.jpg"
            picture.convert("RGB").crop((left, top, picture.width - right, picture.height - bottom)).save(path, quality=88)
        samples.append(Sample(path, path.name, None))
    return samples
