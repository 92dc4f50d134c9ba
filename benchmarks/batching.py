"""Do batches change answers? Rendered birds in pictures of several sizes, one by one, in batches, shuffled, in bfloat16; all thought
over, nothing remembered. Says how many answers differ, and by how much the numbers behind them do."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from typing import Any

from PIL import Image

import fgvr
from benchmarks.race import Races
from fgvr.runtime.pool import close_shared
from fgvr.session import Session
from fgvr.types import Prediction

SIZES = (1.0, 0.75, 1.4)  # of the rendered picture's side
BATCHES = (1, 8, 32)


def measure(*, models: str, repeat: int, size: int = 5, words: Sequence[str] = (), half: bool = True) -> Races:
    """`size`: test images of each species; `half`: in bfloat16, too. `repeat` plays no part: answers are compared, nothing is timed."""
    with tempfile.TemporaryDirectory(prefix="fgvr-batching-") as folder:
        common = [
            f"models={models}",
            f"dataset.test_per_class={size}",
            f"paths.home={folder}",
            "store.enabled=false",
            "trigger=always",
            *words,
        ]
        common += [f"models.{role}.source={source}" for role, source in _sources(models).items()]
        ways = {f"batches of {batch}, in order": _answers(common, batch) for batch in BATCHES}
        ways["batches of 8, shuffled"] = _answers(common, 8, shuffled=True)
        if half:
            dtypes = [f"models.{role}.dtype=bfloat16" for role in ("encoder", "mllm")]
            ways["batches of 8, in order, bfloat16"] = _answers([*common, *dtypes], 8)
    first, *others = ways.items()
    compared = {name: _compared(first[1], answers) for name, answers in others}
    notes = [f"{len(first[1])} images, against one by one in float32:"] + [
        f"  {name:<34} {row['flips']} other answers ({row['fast_flips']} of System 1's), fast probabilities apart by at most "
        f"{row['fast_apart']:.1e}, slow log-likelihoods by {row['slow_apart']:.1e}"
        for name, row in compared.items()
    ]
    return Races(notes=notes, facts={"images": len(first[1]), "compared": compared})


def _sources(models: str) -> dict[str, str]:
    """Where the bundle's weights are, seen from the usual home: this benchmark's own is empty."""
    cfg = fgvr.load_config(f"models={models}")
    return {role: str(cfg.models[role].source) for role in ("encoder", "mllm")}


def _answers(words: list[str], batch: int, *, shuffled: bool = False) -> list[Prediction]:
    """In the order of the files, whatever the order they were asked in."""
    sizes = [f"models.{role}.batch_size={batch}" for role in ("encoder", "mllm")]
    cfg = fgvr.load_config(*words, *sizes, f"evaluation.batch_size={batch}")
    try:
        Session(cfg).open_knowledge()
        recognizer = fgvr.build_recognizer(cfg)
        samples = list(Session(cfg).dataset.split.test)
        order = list(range(len(samples)))
        if shuffled:
            random.Random(0).shuffle(order)
        found = dict(zip(order, recognizer.batch([_resized(samples[i].image, SIZES[i % len(SIZES)]) for i in order]), strict=True))
    finally:
        close_shared()
    return [found[i] for i in range(len(samples))]


def _resized(path: Any, by: float) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((round(picture.width * by), round(picture.height / by)), Image.Resampling.BICUBIC)


def _compared(first: list[Prediction], second: list[Prediction]) -> dict[str, float]:
    both = list(zip(first, second, strict=True))
    return {
        "flips": sum(a.category != b.category for a, b in both),
        "fast_flips": sum(a.fast.top.category != b.fast.top.category for a, b in both),
        "fast_apart": max(abs(a.fast.confidence - b.fast.confidence) for a, b in both),
        "slow_apart": max((_apart(a, b) for a, b in both), default=0.0),
    }


def _apart(a: Prediction, b: Prediction) -> float:
    """The greatest difference of a log-likelihood that both have, in nats."""
    one, other = (p.slow.log_likelihoods if p.slow else {} for p in (a, b))
    return max((abs(one[id] - other[id]) for id in one.keys() & other.keys()), default=0.0)
