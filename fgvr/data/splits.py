"""Which images build the knowledge, which calibrate the trigger, which are the test: chosen by hash, so that every machine agrees."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol, TypeVar

from fgvr.errors import DatasetError
from fgvr.types import Sample
from fgvr.utils.files import short_hash

ROLES = ("support", "test", "calibration")


@dataclass(frozen=True, slots=True)
class Split:
    """Samples by role; each sample has a label and the hash of its content. One key in two roles (or twice in one) is a DatasetError."""

    support: tuple[Sample, ...]
    test: tuple[Sample, ...]
    calibration: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for role, sample in self:
            if sample.key in seen:
                raise DatasetError(f"{sample.key} is in the {seen[sample.key]} and again in the {role} images; list it once")
            seen[sample.key] = role

    def __iter__(self) -> Any:
        """(role, sample) pairs."""
        return ((role, sample) for role in ROLES for sample in getattr(self, role))

    @property
    def split_hash(self) -> str:
        """12 hex digits over what is in which role: keys, labels and contents, in no order."""
        return short_hash(sorted((role, s.key, s.label or "", s.sha256) for role, s in self))

    def to_json(self) -> dict[str, Any]:
        """For splits.json; holds keys, not where the root is."""
        rows = {role: [_row(sample) for sample in getattr(self, role)] for role in ROLES}
        return {"schema": 1, "split_hash": self.split_hash, **rows}


class Named(Protocol):
    """What an image is chosen by."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str | None: ...


S = TypeVar("S", bound=Named)


def choose_shots(samples_by_class: Mapping[str, Sequence[S]], shots: int | Mapping[str, int], seed: int) -> tuple[S, ...]:
    """`shots` samples of each class, the same for the same keys and seed in whatever order they come; fewer shots are among more.

    Sorted by class, then by rank. Classes with too few samples are a DatasetError that names them.
    """
    counts = dict.fromkeys(samples_by_class, shots) if isinstance(shots, int) else shots
    require(samples_by_class, counts, f"dataset.shots={max(counts.values(), default=0)}")
    ordered = sorted(samples_by_class, key=natural)
    return tuple(sample for label in ordered for sample in rank(samples_by_class[label], seed)[: counts[label]])


def long_tail(ids: Sequence[str], most: int, fewest: int, seed: int) -> dict[str, int]:
    """Shots per class that fall geometrically from `most` to `fewest`; which class is how rare is chosen by a hash of seed and id.

    The exponential profile of Cui et al. 2019 (class-balanced loss), with imbalance `most / fewest`.
    """
    order = sorted(ids, key=lambda id: sha256(f"tail {seed}\0{id}".encode("utf-8", "surrogateescape")).digest())
    steps = max(1, len(order) - 1)
    counts = {id: round(most * (fewest / most) ** (place / steps)) for place, id in enumerate(order)}
    return {id: counts[id] for id in ids}


def rank(samples: Sequence[S], seed: int) -> list[S]:
    """The samples in the order in which they are chosen: by a hash of seed, label and key."""
    return sorted(samples, key=lambda s: sha256(f"{seed}\0{s.label}\0{s.key}".encode("utf-8", "surrogateescape")).digest())


def require(
    samples_by_class: Mapping[str, Sequence[Named]],
    needed: int | Mapping[str, int],
    wish: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """A DatasetError that names the classes with fewer than `needed` images, when there are any."""
    least = dict.fromkeys(samples_by_class, needed) if isinstance(needed, int) else needed
    counts = {label: len(samples_by_class[label]) for label in sorted(samples_by_class, key=natural)}
    few = [f"{(names or {}).get(label, label)} ({count})" for label, count in counts.items() if count < least[label]]
    if few:
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        bounds = sorted({min(least.values()), max(least.values())})
        raise DatasetError(
            f"{wish} needs {' to '.join(map(str, bounds))} images of each class; too few: {', '.join(few[:10])}{more}. "
            "Add images or ask for fewer"
        )


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which 9 comes before 10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part)


def _row(sample: Sample) -> dict[str, Any]:
    return {"key": sample.key, "label": sample.label, "sha256": sample.sha256}
