"""Several continuations of one prompt on one picture: each computed alone, or after a prompt that is computed once."""

from __future__ import annotations

from benchmarks import reference
from benchmarks.bench import Bench, bench
from benchmarks.race import Races, Way, race
from benchmarks.slow import DESCRIPTIONS

TEXTS = [*DESCRIPTIONS, "A bird with a yellow crown and red legs."]


def measure(*, models: str, repeat: int, size: int = 4) -> Races:
    """`size`: pictures, each with 6 continuations."""
    with bench(models, images=size) as b:
        pictures = [b.open(file) for file in b.files]
        ways = [
            Way("each continuation with its own prompt", lambda: b.counted(lambda: _alone(b, pictures))),
            Way("one prompt, its cache shared", lambda: b.counted(lambda: _shared(b, pictures))),
            Way("the same, pictures in one batch", lambda: b.counted(lambda: _batched(b, pictures))),
        ]
        laps = race(ways, items=size * len(TEXTS), repeat=repeat)
        alone, shared = _alone(b, pictures), _shared(b, pictures)
        apart = max(abs(a - s) for one, other in zip(alone, shared, strict=True) for a, s in zip(one, other, strict=True))
        same = sum(one.index(max(one)) == other.index(max(other)) for one, other in zip(alone, shared, strict=True))
    note = f"log-likelihoods apart by at most {apart:.1e} nats, same best continuation for {same} of {size}"
    return Races({"prefix": laps}, [note], {"apart": apart, "same_best": same})


def _alone(b: Bench, pictures: list) -> list[list[float]]:
    return [[b.mllm.score([p], [reference.CHOOSE], [[text]])[0].log_likelihoods[0] for text in TEXTS] for p in pictures]


def _shared(b: Bench, pictures: list) -> list[list[float]]:
    return [list(b.mllm.score([p], [reference.CHOOSE], [TEXTS])[0].log_likelihoods) for p in pictures]


def _batched(b: Bench, pictures: list) -> None:
    b.mllm.score(pictures, [reference.CHOOSE] * len(pictures), [TEXTS] * len(pictures))
