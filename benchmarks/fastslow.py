"""The whole way of many images of which one in three is thought over; and System 1 alone."""

from __future__ import annotations

import numpy as np

from benchmarks import reference
from benchmarks.bench import Bench, bench
from benchmarks.race import Races, Way, race
from benchmarks.slow import DESCRIPTIONS, TOKENS

EVERY = 3
CLASSES = 200
BATCH = 8  # on a CPU a ViT-B is quickest so


def measure(*, models: str, repeat: int, size: int = 24) -> Races:
    """`size`: images."""
    with bench(models, images=size) as b:
        width = b.encoder.encode([b.open(b.files[0])]).shape[1]
        table = np.random.default_rng(0).standard_normal((CLASSES, width)).astype(np.float32)
        fast = [
            Way("reference: encoded twice, one by one", lambda: b.counted(lambda: [reference.fast(b, f, table) for f in b.files])),
            Way(f"ours: encoded once, batches of {BATCH}", lambda: b.counted(lambda: _look(b, table, BATCH))),
            Way("ours: encoded once, all in one batch", lambda: b.counted(lambda: _look(b, table))),
        ]
        both = [
            Way("reference: System 2 on every third", lambda: b.counted(lambda: _reference(b, table))),
            Way("ours: same tokens, batched", lambda: b.counted(lambda: _think(b, table, score=False))),
            Way("ours: 5 descriptions by likelihood", lambda: b.counted(lambda: _think(b, table, score=True)), same_work=False),
        ]
        return Races(
            {"fast": race(fast, items=size, repeat=repeat), "fastslow": race(both, items=size, repeat=repeat)}, facts={"every": EVERY}
        )


def _look(b: Bench, table: np.ndarray, batch: int | None = None) -> list:
    pictures = [b.open(file) for file in b.files]
    step = batch or len(pictures)
    for start in range(0, len(pictures), step):
        vectors = b.encoder.encode(pictures[start : start + step])
        vectors @ table.T, vectors @ table.T  # image and text prototypes
    return pictures


def _think(b: Bench, table: np.ndarray, *, score: bool) -> None:
    doubted = _look(b, table)[::EVERY]
    asked = [reference.CHOOSE] * len(doubted)
    if score:
        b.mllm.score(doubted, asked, [DESCRIPTIONS] * len(doubted))
    else:
        b.mllm.generate(doubted, asked, max_new_tokens=TOKENS)


def _reference(b: Bench, table: np.ndarray) -> None:
    for i, file in enumerate(b.files):
        reference.fast(b, file, table)
        if i % EVERY == 0:
            reference.ask(b, [file], reference.CHOOSE, TOKENS)
