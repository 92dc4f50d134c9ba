"""System 2 on pictures already doubted: the reference's generate call, the same tokens in batches, and likelihoods instead of tokens."""

from __future__ import annotations

import numpy as np

from benchmarks import reference
from benchmarks.bench import Bench, bench
from benchmarks.race import Races, Way, race

TOKENS = 16
LETTERS = [letter for letter in "ABCDE"]
DESCRIPTIONS = [
    f"A bird with a {colour} crown, a grey back, a plain breast and a long beak." for colour in ("red", "blue", "black", "white", "green")
]


def measure(*, models: str, repeat: int, size: int = 8) -> Races:
    """`size`: images, of which each is thought over."""
    with bench(models, images=size) as b:
        prototypes = np.eye(5, b.encoder.encode([b.open(b.files[0])]).shape[1], dtype=np.float32)
        ways = [
            Way("reference: 2 encodes, PNG, 1 generate each", lambda: b.counted(lambda: _reference(b, prototypes))),
            Way("ours: encoded before, same tokens, batched", lambda: b.counted(lambda: _tokens(b))),
            Way("ours: 5 descriptions by likelihood", lambda: b.counted(lambda: _score(b, DESCRIPTIONS)), same_work=False),
            Way("ours: 5 letters by likelihood", lambda: b.counted(lambda: _score(b, LETTERS)), same_work=False),
        ]
        laps = race(ways, items=size, repeat=repeat)
        alone = [reference.ask(b, [file], reference.CHOOSE, TOKENS) for file in b.files]
        same = sum(a == t for a, t in zip(alone, _tokens(b), strict=True))
    notes = [f"{TOKENS} new tokens at most; answers of the batch equal to those one by one: {same} of {size}"]
    return Races({"slow": laps}, notes, {"tokens": TOKENS, "same_answers": same, "images": size})


def _reference(b: Bench, prototypes: np.ndarray) -> None:
    for file in b.files:
        reference.slow(b, file, prototypes, reference.CHOOSE, TOKENS)


def _tokens(b: Bench) -> list[str]:
    pictures = [b.open(file) for file in b.files]
    return b.mllm.generate(pictures, [reference.CHOOSE] * len(pictures), max_new_tokens=TOKENS)


def _score(b: Bench, texts: list[str]) -> None:
    pictures = [b.open(file) for file in b.files]
    b.mllm.score(pictures, [reference.CHOOSE] * len(pictures), [texts] * len(pictures))
