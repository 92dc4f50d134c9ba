"""Who plays which role: from a listing of labelled images and what was wished for, the support, calibration and test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fgvr.data.catalog import Catalog
from fgvr.data.folder import Inspector
from fgvr.data.listing import Listing
from fgvr.data.splits import Split, long_tail, natural, rank, require
from fgvr.errors import ConfigError, DatasetError
from fgvr.types import Sample

OnBadImage = Literal["skip", "error"]
LOOK_AT_ALL = 20_000
"""An official split with more images than this is only opened where it is used."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How many images of a class play which role; senseless wishes are a ConfigError.

    `shots` support images (None: all that is not wanted elsewhere), `calibration` images nothing learns from, at most `test_per_class`
    test images (None: all). With `tail_shots` the support is long-tailed: `shots` for the commonest class, `tail_shots` for the rarest.
    `seed` chooses the images, and the order of the tail.
    """

    shots: int | None = 4
    test_per_class: int | None = None
    calibration: int = 0
    seed: int = 0
    tail_shots: int | None = None

    def __post_init__(self) -> None:
        if self.shots is not None and self.shots < 1:
            raise ConfigError(f"dataset.shots must be at least 1, not {self.shots}")
        if self.test_per_class is not None and self.test_per_class < 0:
            raise ConfigError(f"dataset.test_per_class must not be negative, not {self.test_per_class}")
        if self.calibration < 0:
            raise ConfigError(f"dataset.calibration must not be negative, not {self.calibration}")
        if self.tail_shots is not None and not (self.shots is not None and 1 <= self.tail_shots <= self.shots):
            raise ConfigError(f"dataset.tail_shots must be from 1 to dataset.shots={self.shots}, not {self.tail_shots}")

    def shots_of(self, ids: Sequence[str]) -> dict[str, int] | None:
        """Support images wanted of each class, or None: all."""
        if self.shots is None:
            return None
        return dict.fromkeys(ids, self.shots) if self.tail_shots is None else long_tail(ids, self.shots, self.tail_shots, self.seed)

    def spoken(self, tested: int = 0) -> str:
        """What was asked for, in the words of the configuration."""
        head = f"dataset.shots={'all' if self.shots is None else self.shots}"
        if self.tail_shots is not None:
            head += f" and dataset.tail_shots={self.tail_shots}"
        more = [f"dataset.calibration={self.calibration}"] * bool(self.calibration) + [f"{tested} to test"] * bool(tested)
        return " with ".join((head, " and ".join(more))) if more else head


def check_on_bad_image(value: str) -> None:
    if value not in ("skip", "error"):
        raise ConfigError(f"dataset.on_bad_image must be skip or error, not {value!r}")


def cast(listing: Listing, inspector: Inspector, wishes: Wishes, notes: list[str]) -> Split:
    """The split of a listing: its own test part where it has one, else what the shots leave. What a reader must know goes to `notes`."""
    if not listing.official or len(listing.pool) + len(listing.test) <= LOOK_AT_ALL:
        inspector.look((*listing.pool, *listing.test))
    return _official(listing, inspector, wishes) if listing.official else _seeded(listing, inspector, wishes, notes)


def _official(listing: Listing, inspector: Inspector, wishes: Wishes) -> Split:
    seed, limit, names = wishes.seed, wishes.test_per_class, listing.catalog.as_dict()
    pools, tests = _by_class(listing.catalog, listing.pool), _by_class(listing.catalog, listing.test)
    shots = wishes.shots_of(listing.catalog.ids)
    wanted = {label: None if shots is None else shots[label] + wishes.calibration for label in pools}
    ranked = {label: rank(samples, seed) for label, samples in pools.items()}
    inspector.look(sample for label, samples in ranked.items() for sample in samples[: wanted[label]])
    usable = {label: inspector.good(samples, wanted[label]) for label, samples in ranked.items()}
    require(usable, {label: (count or 1 + wishes.calibration) for label, count in wanted.items()}, wishes.spoken(), names)
    chosen = {label: rank(samples, seed)[:limit] for label, samples in tests.items()}
    inspector.look(sample for samples in chosen.values() for sample in samples)
    test = [s for label in chosen for s in _in_order(inspector.good(rank(tests[label], seed), limit))]
    if not test and limit != 0:
        raise DatasetError(f"{inspector.root}: no usable test image")
    support, held_out = _cut(usable, shots, wishes.calibration)
    return Split(support, tuple(test), held_out)


def _seeded(listing: Listing, inspector: Inspector, wishes: Wishes, notes: list[str]) -> Split:
    usable = inspector.good(listing.pool)
    unique = _without_copies(usable)
    if len(unique) < len(usable):
        notes.append(f"{len(usable) - len(unique)} exact copies of other images were left out")
    pools = {label: rank(samples, wishes.seed) for label, samples in _by_class(listing.catalog, unique).items()}
    shots, limit, held = wishes.shots_of(listing.catalog.ids), wishes.test_per_class, wishes.calibration
    tested = (limit or 0) if shots is None else min(1, 1 if limit is None else limit)
    needed = {label: (1 if shots is None else shots[label]) + held + tested for label in pools}
    require(pools, needed, wishes.spoken(tested), listing.catalog.as_dict())
    if shots is None:
        test = [s for samples in pools.values() for s in _in_order(samples[len(samples) - tested :])]
        kept = {label: samples[: len(samples) - tested] for label, samples in pools.items()}
    else:
        test = [s for label, samples in pools.items() for s in _in_order(samples[shots[label] + held :][:limit])]
        kept = {label: samples[: shots[label] + held] for label, samples in pools.items()}
    support, held_out = _cut(kept, shots, held)
    return Split(support, tuple(test), held_out)


def _cut(
    ranked: Mapping[str, Sequence[Sample]], shots: Mapping[str, int] | None, calibration: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(support, calibration): the first `shots` of each class (None: all but `calibration`), and the next ones."""
    ends = {label: len(samples) - calibration if shots is None else shots[label] for label, samples in ranked.items()}
    support = tuple(s for label, samples in ranked.items() for s in samples[: ends[label]])
    return support, tuple(s for label, samples in ranked.items() for s in samples[ends[label] : ends[label] + calibration])


def _without_copies(samples: Sequence[Sample]) -> list[Sample]:
    """One sample per content: the first by key. An image that two classes claim belongs to neither."""
    labels: dict[str, set[str | None]] = {}
    first: dict[str, str] = {}
    for sample in _in_order(samples):
        labels.setdefault(sample.sha256, set()).add(sample.label)
        first.setdefault(sample.sha256, sample.key)
    return [s for s in samples if first[s.sha256] == s.key and len(labels[s.sha256]) == 1]


def _by_class(catalog: Catalog, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """In the catalogue's order; a class without samples has an empty list."""
    groups: dict[str, list[Sample]] = {id: [] for id in catalog.ids}
    for sample in samples:
        groups[str(sample.label)].append(sample)
    return groups


def _in_order(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: natural(s.key))
