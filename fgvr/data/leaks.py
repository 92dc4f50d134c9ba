"""No image may be tested that helped to build what is tested. This file knows exact copies, by content hash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fgvr.errors import LeakError
from fgvr.types import Sample


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test image, and where the same image was used."""

    key: str
    where: str

    def __str__(self) -> str:
        return f"{self.key} (is {self.where})"


def exact_overlaps(test: Iterable[Sample], forbidden: Mapping[str, str]) -> list[Overlap]:
    """Test samples whose content hash is among `forbidden` (sha256 -> where it was used), in the order of the test.

    Finds the same bytes only; re-encoded and resized copies are the business of the near-copy check.
    """
    return [Overlap(sample.key, forbidden[sample.sha256]) for sample in test if sample.sha256 and sample.sha256 in forbidden]


def guard(test: Iterable[Sample], forbidden: Mapping[str, str], *, allow: bool = False) -> list[Overlap]:
    """Refuse a test that overlaps: LeakError with the count and up to 10 offenders. With `allow` they are returned instead."""
    overlaps = exact_overlaps(test, forbidden)
    if overlaps and not allow:
        refuse(overlaps)
    return overlaps


def refuse(overlaps: list[Overlap]) -> None:
    """Raise the LeakError for these overlaps."""
    named = "\n".join(f"  {overlap}" for overlap in overlaps[:10])
    more = f"\n  and {len(overlaps) - 10} more" if len(overlaps) > 10 else ""
    raise LeakError(
        f"{len(overlaps)} test image{'s' * (len(overlaps) != 1)} helped to build what is tested:\n{named}{more}\n"
        "Take them out of the test, or set evaluation.allow_overlap=true (the report will say so in its first line)"
    )
