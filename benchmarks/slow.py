"""System 2 on pictures already doubted: the reference's generate call, the same tokens in batches, and likelihoods instead of tokens."""

from __future__ import annotations

import numpy as np

from benchmarks import reference
from benchmarks.bench import Bench, contenders
from benchmarks.floors import bf16_pays
from benchmarks.race import Races, Way, race

TOKENS = 64  # as on the research page
LETTERS = [letter for letter in "ABCDE"]
DESCRIPTIONS = [
    f"A bird with a {colour} crown, a grey back, a plain breast and a long beak." for colour in ("red", "blue", "black", "white", "green")
]


def measure(*, models: str, repeat: int, size: int = 8) -> Races:
    """`size`: images, of which each is thought over."""
    with contenders(models, images=size, half=bf16_pays()) as field:
        peer = field.peer
        prototypes = np.eye(5, peer.encoder.encode([peer.open(peer.files[0])]).shape[1], dtype=np.float32)
        ways = [Way("reference: 2 encodes, PNG, 1 generate each", lambda: peer.counted(lambda: _reference(peer, prototypes)))]
        for dtype, b in field.ours.items():
            ways += _ours(dtype, b)
        laps = race(ways, items=size, repeat=repeat)
        alone = [reference.ask(peer, [file], reference.CHOOSE, TOKENS) for file in peer.files]
        same = {dtype: sum(a == t for a, t in zip(alone, _tokens(b), strict=True)) for dtype, b in field.ours.items()}
    told = ", ".join(f"{count} of {size} in {dtype}" for dtype, count in same.items())
    notes = [f"{TOKENS} new tokens at most; answers of the batch equal to the reference's: {told}"]
    return Races({"slow": laps}, notes, {"tokens": TOKENS, "same_answers": same, "images": size})


def _ours(dtype: str, b: Bench) -> list[Way]:
    return [
        Way(f"ours: encoded before, same tokens, {dtype}", lambda: b.counted(lambda: _tokens(b)), same_work=dtype == "float32"),
        Way(f"ours: 5 descriptions by likelihood, {dtype}", lambda: b.counted(lambda: _score(b, DESCRIPTIONS)), same_work=False),
        Way(f"ours: 5 letters by likelihood, {dtype}", lambda: b.counted(lambda: _score(b, LETTERS)), same_work=False),
    ]


def _reference(b: Bench, prototypes: np.ndarray) -> None:
    for file in b.files:
        reference.slow(b, file, prototypes, reference.CHOOSE, TOKENS)


def _tokens(b: Bench) -> list[str]:
    pictures = [b.open(file) for file in b.files]
    return b.mllm.generate(pictures, [reference.CHOOSE] * len(pictures), max_new_tokens=TOKENS)


def _score(b: Bench, texts: list[str]) -> None:
    pictures = [b.open(file) for file in b.files]
    b.mllm.score(pictures, [reference.CHOOSE] * len(pictures), [texts] * len(pictures))
