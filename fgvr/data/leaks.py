"""The leak guard: no test image may have built what is tested. Finds exact copies and near duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fgvr.data.near_duplicates import HashIndex, PerceptualHash
from fgvr.errors import LeakError
from fgvr.types import Sample

_AT_ONCE = 1000  # test images hashed per round, which bounds the memory of a long test
SCOPE = "leak guard: exact, re-encoded and resized copies are refused; crops of more than 5 % and mirror images are not looked for"


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test image, and where the same image, or a near copy of it, was used."""

    key: str
    where: str
    near: bool = False

    def __str__(self) -> str:
        return f"{self.key} ({'looks like' if self.near else 'is'} {self.where})"


def exact_overlaps(test: Iterable[Sample], forbidden: Mapping[str, str]) -> list[Overlap]:
    """Test samples whose content hash is among `forbidden` (sha256 -> where it was used), in the order of the test."""
    return [Overlap(sample.key, forbidden[sample.sha256]) for sample in test if sample.sha256 and sample.sha256 in forbidden]


def near_overlaps(test: Sequence[Sample], forbidden: Mapping[str, str], used: Iterable[Sample], hashes: PerceptualHash) -> list[Overlap]:
    """Test samples that are near duplicates of a forbidden image. `used`: the samples through which those images are opened."""
    index = HashIndex(hashes.of([sample for sample in used if sample.sha256 in forbidden]))
    overlaps = []
    for start in range(0, len(test), _AT_ONCE):
        some = test[start : start + _AT_ONCE]
        found = index.query(hashes.of(some))
        overlaps += [
            Overlap(sample.key, forbidden[found[sample.sha256]], near=True)
            for sample in some
            if sample.sha256 in found and sample.sha256 not in forbidden
        ]
    return overlaps


_TOLD = "test images helped to build what is tested"


def note(overlaps: int, tested: int) -> str:
    """The first line of a report in spite of overlaps."""
    return f"{overlaps} of {tested} {_TOLD}"


def told(notes: Iterable[str]) -> list[str]:
    """Those of a report's notes that say so."""
    return [note for note in notes if note.endswith(_TOLD)]


def guard(
    test: Sequence[Sample],
    forbidden: Mapping[str, str],
    *,
    allow: bool = False,
    used: Iterable[Sample] = (),
    hashes: PerceptualHash | None = None,
) -> list[Overlap]:
    """Overlaps of the test with forbidden images; without `allow` a LeakError with all of them. Near duplicates need `hashes`."""
    overlaps = exact_overlaps(test, forbidden)
    if hashes is not None:
        overlaps += near_overlaps(test, forbidden, used, hashes)
    if overlaps and not allow:
        refuse(overlaps)
    return overlaps


def without_near_copies(samples: Sequence[Sample], of: Sequence[Sample], hashes: PerceptualHash) -> list[Sample]:
    """The samples that are near duplicates of none of the others."""
    found = HashIndex(hashes.of(of)).query(hashes.of(samples))
    return [sample for sample in samples if sample.sha256 not in found]


def refuse(overlaps: Sequence[Overlap]) -> None:
    """Raise the LeakError for these overlaps; its message names the first ten."""
    named = "\n".join(f"  {overlap}" for overlap in overlaps[:10])
    more = f"\n  and {len(overlaps) - 10} more" if len(overlaps) > 10 else ""
    raise LeakError(
        f"{len(overlaps)} test image{'s' * (len(overlaps) != 1)} helped to build what is tested:\n{named}{more}\n"
        "Take them out of the test, or set evaluation.allow_overlap=true (the report will say so in its first line)",
        offenders=tuple(overlaps),
    )
