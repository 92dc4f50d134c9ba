"""Few-shot splits: the support, calibration and test images of a listing, chosen by hash, so that every machine agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

from fgvr.data.catalog import Catalog, Listing, describe_missing_files, missing_files
from fgvr.data.folder import Inspector, describe_bad_images
from fgvr.errors import ConfigError, DatasetError
from fgvr.types import Sample
from fgvr.utils.files import short_hash
from fgvr.utils.images import ImageSource
from fgvr.utils.text import natural, some

ROLES = ("support", "test", "calibration")


@dataclass(frozen=True, slots=True)
class Split:
    """Samples by role; each sample has a label and the hash of its content. One key in two roles (or twice in one) is a DatasetError."""

    support: tuple[Sample, ...]
    test: Sequence[Sample]  # of a stream: each made when it is asked for, with keys that its index vouches for
    calibration: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        held = [(role, samples) for role in ROLES if isinstance(samples := getattr(self, role), tuple)]
        for role, sample in ((role, sample) for role, samples in held for sample in samples):
            if sample.key in seen:
                raise DatasetError(f"{sample.key} is in the {seen[sample.key]} and again in the {role} images; list it once")
            seen[sample.key] = role

    def __iter__(self) -> Any:
        """(role, sample) pairs."""
        return ((role, sample) for role in ROLES for sample in getattr(self, role))

    @property
    def known(self) -> dict[str, list[ImageSource]]:
        """Support images by class id, for the pictures of pages."""
        known: dict[str, list[ImageSource]] = {}
        for sample in self.support:
            known.setdefault(str(sample.label), []).append(sample.image)
        return known

    @property
    def split_hash(self) -> str:
        """12 hex digits over what is in which role: keys, labels and contents, in no order."""
        return short_hash(sorted((role, s.key, s.label or "", s.sha256) for role, s in self))


def choose_shots(samples_by_class: Mapping[str, Sequence[Sample]], shots: int | Mapping[str, int], seed: int) -> tuple[Sample, ...]:
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


def rank(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The samples in the order in which they are chosen: by a hash of seed, label and key."""
    return sorted(samples, key=lambda s: sha256(f"{seed}\0{s.label}\0{s.key}".encode("utf-8", "surrogateescape")).digest())


def require(samples_by_class: Mapping[str, Sequence[Sample]], needed: int | Mapping[str, int], wish: str) -> None:
    """A DatasetError that names the classes with fewer than `needed` images, when there are any."""
    least = dict.fromkeys(samples_by_class, needed) if isinstance(needed, int) else needed
    counts = {label: len(samples_by_class[label]) for label in sorted(samples_by_class, key=natural)}
    few = {label: count for label, count in counts.items() if count < least[label]}
    if few:
        bounds = sorted({min(least.values()), max(least.values())})
        raise DatasetError(f"{wish} needs {' to '.join(map(str, bounds))} images of each class; too few: {_counts(few)}")


def _counts(counts: Mapping[str, int]) -> str:
    return some([f"{name} ({count})" for name, count in counts.items()])


# --- few-shot splits -----------------------------------------------------------------------------------------------------------

OnBadImage = Literal["skip", "error"]
Shots = int | Literal["all"]
INSPECT_ALL = 20_000
"""Of an official split with more images than this, only the images in use are opened."""


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """Images per class and role; an invalid number is a ConfigError.

    `shots` support images ("all": all that the other roles leave), `calibration` images that nothing learns from, at most
    `test_per_class` test images (None: all). With `tail_shots` the support is long-tailed: `shots` for the most frequent class,
    `tail_shots` for the rarest. `seed` chooses the images and the order of the tail. A class with fewer images gives what it has, at least
    one; with `strict` that is an error.
    """

    shots: Shots = 4
    test_per_class: int | None = None
    calibration: int = 0
    seed: int = 0
    tail_shots: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.tail_shots is not None and not (self.shots != "all" and 1 <= self.tail_shots <= self.shots):
            raise ConfigError(f"dataset.tail_shots must be from 1 to dataset.shots={self.shots}, not {self.tail_shots}")

    def shots_of(self, ids: Sequence[str]) -> dict[str, int] | None:
        """Support images per class id; None: all."""
        if self.shots == "all":
            return None
        return dict.fromkeys(ids, self.shots) if self.tail_shots is None else long_tail(ids, self.shots, self.tail_shots, self.seed)

    def describe(self, tested: int = 0) -> str:
        """The request in the words of the configuration."""
        head = f"dataset.shots={self.shots}"
        if self.tail_shots is not None:
            head += f" and dataset.tail_shots={self.tail_shots}"
        more = [f"dataset.calibration={self.calibration}"] * bool(self.calibration) + [f"{tested} to test"] * bool(tested)
        return " with ".join((head, " and ".join(more))) if more else head


def split_few_shot(listing: Listing, inspector: Inspector, request: SplitRequest, notes: list[str]) -> Split:
    """The split of a listing: its official test part, else the images that the shots leave. Appends to `notes` what was left out.

    Raises:
        DatasetError: a class has no image for a role it needs; says which files are missing or unusable.
    """
    _inspect_all(listing, inspector)
    try:
        return (_official if listing.official else _seeded)(listing, inspector, request, notes)
    except DatasetError as error:
        why = describe_missing_files(missing_files(listing)) or "; ".join(describe_bad_images(inspector.bad_images) or notes)
        raise DatasetError(f"{error}. {why or 'Add images or ask for fewer'}") from error


def leave_out_contradictions(listing: Listing, inspector: Inspector, notes: list[str]) -> Listing:
    """The listing without photographs (by content) that are in two classes: nobody knows which of them is right.

    Looks at the support and the test part by themselves: what is learnt must not depend on what is tested.
    """
    _inspect_all(listing, inspector)
    hashes = {sample.key: sample.sha256 for sample in inspector.seen}
    parts: list[tuple[Sample, ...]] = []
    found: list[str] = []
    for part in (listing.pool, listing.test):
        labels: dict[str, dict[str, str]] = {}
        for sample in part:
            if sample.key in hashes:
                labels.setdefault(hashes[sample.key], {}).setdefault(str(sample.label), sample.key)
        twice = {sha256: keys for sha256, keys in labels.items() if len(keys) > 1}
        found += [" and ".join(keys.values()) for keys in twice.values()]
        parts.append(tuple(sample for sample in part if hashes.get(sample.key) not in twice))
    if found:
        count = f"{len(found)} photographs are" if len(found) > 1 else "1 photograph is"
        notes.append(f"{count} in two classes and left out of both, the first: {found[0]}")
    return replace(listing, pool=parts[0], test=parts[1])


def _inspect_all(listing: Listing, inspector: Inspector) -> None:
    if not listing.official or len(listing.pool) + len(listing.test) <= INSPECT_ALL:
        inspector.inspect((*listing.pool, *listing.test))


def _official(listing: Listing, inspector: Inspector, request: SplitRequest, notes: list[str]) -> Split:
    seed, limit, held = request.seed, request.test_per_class, request.calibration
    pools, tests = _by_class(listing.catalog, listing.pool), _by_class(listing.catalog, listing.test)
    shots = request.shots_of(listing.catalog.ids)
    wanted = {label: None if shots is None else shots[label] + held for label in pools}
    ranked = {label: rank(samples, seed) for label, samples in pools.items()}
    inspector.inspect(sample for label, samples in ranked.items() for sample in samples[: wanted[label]])
    usable = {label: inspector.usable(samples, wanted[label]) for label, samples in ranked.items()}
    taken = shots_taken(listing.catalog, usable, request, notes)
    chosen = {label: rank(samples, seed)[:limit] for label, samples in tests.items()}
    inspector.inspect(sample for samples in chosen.values() for sample in samples)
    test = [s for label in chosen for s in _in_order(inspector.usable(rank(tests[label], seed), limit))]
    if not test and limit != 0:
        raise DatasetError(f"{inspector.root}: no usable test image")
    support, held_out = cut(usable, taken, held)
    return Split(support, tuple(test), held_out)


def _seeded(listing: Listing, inspector: Inspector, request: SplitRequest, notes: list[str]) -> Split:
    usable = inspector.usable(listing.pool)
    unique = _without_copies(usable)
    if len(unique) < len(usable):
        notes.append(f"{len(usable) - len(unique)} exact copies of other images were left out")
    pools = {label: rank(samples, request.seed) for label, samples in _by_class(listing.catalog, unique).items()}
    limit, held = request.test_per_class, request.calibration
    tested = (limit or 0) if request.shots == "all" else min(1, 1 if limit is None else limit)
    taken = shots_taken(listing.catalog, pools, request, notes, tested)
    if request.shots == "all":
        test = [s for samples in pools.values() for s in _in_order(samples[len(samples) - tested :])]
    else:
        test = [s for label, samples in pools.items() for s in _in_order(samples[taken[label] + held :][:limit])]
    support, held_out = cut(pools, taken, held)
    return Split(support, tuple(test), held_out)


def shots_taken(
    catalog: Catalog, usable: Mapping[str, Sequence[Sample]], request: SplitRequest, notes: list[str], tested: int = 0
) -> dict[str, int]:
    """Support images per class: as asked for, or what `calibration` and `tested` leave, but at least one; appends to `notes`."""
    shots, held, names = request.shots_of(catalog.ids), request.calibration, catalog.as_dict()
    spare = 0 if shots is not None and not request.strict else tested
    least = {label: (shots[label] if shots and request.strict else 1) + held + spare for label in usable}
    require({names[label]: samples for label, samples in usable.items()}, {names[k]: n for k, n in least.items()}, request.describe(tested))
    taken = {label: max(1, len(samples) - held - tested) for label, samples in usable.items()}
    if shots is None:
        return taken
    few = {names[label]: count for label, count in taken.items() if count < shots[label]}
    if few:
        notes.append(f"{request.describe(tested)}: {len(few)} classes have fewer images, of which all are used: {_counts(few)}")
    single = [name for name, count in few.items() if count == 1]
    if single:
        notes.append(f"{len(single)} classes have a single support image: a prototype, but no leave-one-out estimate: {some(single)}")
    return {label: min(count, shots[label]) for label, count in taken.items()}


def cut(
    ranked: Mapping[str, Sequence[Sample]], taken: Mapping[str, int], calibration: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(support, calibration): the first `taken` of each class, and the next ones."""
    support = tuple(s for label, samples in ranked.items() for s in samples[: taken[label]])
    return support, tuple(s for label, samples in ranked.items() for s in samples[taken[label] : taken[label] + calibration])


def _without_copies(samples: Sequence[Sample]) -> list[Sample]:
    """One sample per content, the first by key. An image under two classes is left out."""
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
