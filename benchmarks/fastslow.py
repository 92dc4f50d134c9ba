"""The whole way of many images of which one in three is thought over; and System 1 alone."""

from __future__ import annotations

import numpy as np

from benchmarks import reference
from benchmarks.bench import Bench, contenders
from benchmarks.floors import bf16_pays
from benchmarks.race import Races, Way, race
from benchmarks.slow import DESCRIPTIONS, TOKENS

EVERY = 3
CLASSES = 200
BATCH = 8  # on a CPU a ViT-B is quickest so


def measure(*, models: str, repeat: int, size: int = 24) -> Races:
    """`size`: images."""
    with contenders(models, images=size, half=bf16_pays()) as field:
        peer = field.peer
        width = peer.encoder.encode([peer.open(peer.files[0])]).shape[1]
        table = np.random.default_rng(0).standard_normal((CLASSES, width)).astype(np.float32)
        fast = [
            Way("reference: encoded twice, one by one", lambda: peer.counted(lambda: [reference.fast(peer, f, table) for f in peer.files]))
        ]
        both = [Way("reference: System 2 on every third", lambda: peer.counted(lambda: _reference(peer, table)))]
        for dtype, b in field.ours.items():
            fast += _fast(dtype, b, table)
            both += _both(dtype, b, table)
        return Races(
            {"fast": race(fast, items=size, repeat=repeat), "fastslow": race(both, items=size, repeat=repeat)},
            facts={"every": EVERY, "tokens": TOKENS},
        )


def _fast(dtype: str, b: Bench, table: np.ndarray) -> list[Way]:
    same = dtype == "float32"
    return [
        Way(f"ours: encoded once, batches of {BATCH}, {dtype}", lambda: b.counted(lambda: _look(b, table, BATCH)), same_work=same),
        Way(f"ours: encoded once, one batch, {dtype}", lambda: b.counted(lambda: _look(b, table)), same_work=same),
    ]


def _both(dtype: str, b: Bench, table: np.ndarray) -> list[Way]:
    return [
        Way(f"ours: same tokens, {dtype}", lambda: b.counted(lambda: _think(b, table, score=False)), same_work=dtype == "float32"),
        Way(f"ours: 5 descriptions, {dtype}", lambda: b.counted(lambda: _think(b, table, score=True)), same_work=False),
    ]


def _look(b: Bench, table: np.ndarray, batch: int | None = None) -> list:
    pictures = [b.open(file) for file in b.files]
    step = batch or len(pictures)
    for start in range(0, len(pictures), step):
        vectors = b.encoder.encode(pictures[start : start + step])
        vectors @ table.T, vectors @ table.T  # image and text prototypes
    return pictures


def _think(b: Bench, table: np.ndarray, *, score: bool) -> None:
    doubted = _look(b, table, BATCH)[::EVERY]
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
