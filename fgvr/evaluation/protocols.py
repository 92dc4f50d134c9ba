"""What "correct" means: named, versioned ways to score one predictions file. A number is comparable only within one id and version.

A new protocol is one function on `Outcomes` under `@protocol`; its version rises whenever any score could change.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fgvr.errors import ConfigError
from fgvr.evaluation import metrics
from fgvr.evaluation.records import Outcomes


@dataclass(frozen=True, slots=True)
class Protocol:
    """One definition of the score; `title` is what a reader sees."""

    name: str
    version: int
    title: str
    score: Callable[[Outcomes], float]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


PROTOCOLS: dict[str, Protocol] = {}
DEFAULT = ("exact", "top5", "macro")


def protocol(name: str, version: int, title: str) -> Callable[[Callable[[Outcomes], float]], Callable[[Outcomes], float]]:
    """Register a scoring function."""

    def register(score: Callable[[Outcomes], float]) -> Callable[[Outcomes], float]:
        PROTOCOLS[name] = Protocol(name, version, title, score)
        return score

    return register


def get(name: str) -> Protocol:
    """The protocol of that name."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"no protocol {name!r}{hint}; there are {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[name]


def score(outcomes: Outcomes, names: Iterable[str] = DEFAULT) -> dict[str, float]:
    """Name -> score."""
    return {name: get(name).score(outcomes) for name in names}


@protocol("exact", 1, "Top-1, exact class id")
def _exact(outcomes: Outcomes) -> float:
    return metrics.accuracy(outcomes.right)


@protocol("top5", 1, "Truth among the first five")
def _top5(outcomes: Outcomes) -> float:
    return metrics.top_k(outcomes.place, 5)


@protocol("macro", 1, "Mean of the per-class top-1")
def _macro(outcomes: Outcomes) -> float:
    return metrics.macro(outcomes.labels, outcomes.right)
