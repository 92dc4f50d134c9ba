"""The leak guard: no test image may resemble what is tested was built from. Finds exact copies and near duplicates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fgvr.data.near_duplicates import HashIndex, PerceptualHash
from fgvr.data.splits import Split
from fgvr.data.streams.samples import StreamSamples, without
from fgvr.errors import LeakError
from fgvr.types import Sample

OnOverlap = Literal["error", "drop", "allow"]
"""What happens to test images that resemble the support: the run is refused, they are left out, or they are tested and it is said."""

_AT_ONCE = 1000  # test images hashed per round, which bounds the memory of a long test
SCOPE = "leak guard: exact, re-encoded and resized copies are found; crops of more than 5 % and mirror images are not looked for"
NEAR_MOST = 20_000
"""Test images of a stream among which near copies are looked for, too."""
_TOLD = ("test images resemble", "test images may resemble", "helped to build what is tested")  # the last: files of 0.1


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test image, and where the same image, or a near copy of it, was used."""

    key: str
    where: str
    near: bool = False

    def __str__(self) -> str:
        return f"{self.key} ({'looks like' if self.near else 'is'} {self.where})"


def exact_overlaps(test: Sequence[Sample], used: Mapping[str, str]) -> list[Overlap]:
    """Test samples whose content hash is among `used` (sha256 -> where), in the order of the test."""
    found = test.alike(used) if isinstance(test, StreamSamples) else test
    return [Overlap(sample.key, used[sample.sha256]) for sample in found if sample.sha256 and sample.sha256 in used]


def near_overlaps(test: Sequence[Sample], used: Mapping[str, str], samples: Iterable[Sample], hashes: PerceptualHash) -> list[Overlap]:
    """Test samples that are near duplicates of a used image. `samples`: those through which the used images are opened."""
    index = HashIndex(hashes.of([sample for sample in samples if sample.sha256 in used]))
    overlaps = []
    for start in range(0, len(test), _AT_ONCE):
        some = test[start : start + _AT_ONCE]
        found = index.query(hashes.of(some))
        overlaps += [
            Overlap(sample.key, used[found[sample.sha256]], near=True)
            for sample in some
            if sample.sha256 in found and sample.sha256 not in used
        ]
    return overlaps


def split_overlaps(split: Split, hashes: PerceptualHash) -> list[Overlap]:
    """Test images of a split that are, or nearly are, its support or calibration images."""
    used = {sample.sha256: f"{role}: {sample.key}" for role in ("support", "calibration") for sample in getattr(split, role)}
    if by_content_alone(split.test):
        return exact_overlaps(split.test, used)
    return [*exact_overlaps(split.test, used), *near_overlaps(split.test, used, (*split.support, *split.calibration), hashes)]


def by_content_alone(test: Sequence[Sample]) -> bool:
    """Whether near copies are not looked for: that would decode every image of a long stream once more."""
    return isinstance(test, StreamSamples) and len(test) > NEAR_MOST


def scope(test: Sequence[Sample]) -> str:
    """What the guard looks for in these test images, for a report."""
    return (
        f"leak guard: exact copies are found; near copies are not looked for in a stream of more than {NEAR_MOST:,} test images"
        if (by_content_alone(test))
        else SCOPE
    )


def enforce(split: Split, overlaps: Sequence[Overlap], on_overlap: OnOverlap) -> Split:
    """The split to be tested: without the overlaps (`drop`), or as it is (`allow`). LeakError with all of them on `error`, and where no
    test image would be left."""
    if not overlaps or on_overlap == "allow":
        return split
    keys = {overlap.key for overlap in overlaps}
    left = without(split.test, keys)
    if left and on_overlap == "drop":
        return replace(split, test=left)
    named = "\n".join(f"  {overlap}" for overlap in overlaps[:10])
    more = f"\n  and {len(overlaps) - 10} more" if len(overlaps) > 10 else ""
    cure = "drop leaves them out, allow tests them" if left else "no test image would be left without them; allow tests them"
    raise LeakError(
        f"{_count(len(overlaps), len(split.test))} images that the base is built from or calibrated with:\n{named}{more}\n"
        f"Take them out of the test, or set evaluation.on_overlap ({cure}; the report says so in its first line)",
        offenders=tuple(overlaps),
    )


def note(overlaps: int, tested: int, on_overlap: OnOverlap) -> str:
    """The first line of a report. `tested`: test images before any was left out."""
    outcome = "were left out" if on_overlap == "drop" else "were tested all the same"
    return f"{_count(overlaps, tested)} images of the knowledge base or the calibration, and {outcome} (evaluation.on_overlap={on_overlap})"


def _count(overlaps: int, tested: int) -> str:
    return f"{overlaps} of {tested} test images resemble"


def told(notes: Iterable[str]) -> list[str]:
    """Those of a report's notes that say so."""
    return [note for note in notes if any(words in note for words in _TOLD)]


def without_near_copies(samples: Sequence[Sample], of: Sequence[Sample], hashes: PerceptualHash) -> list[Sample]:
    """The samples that are near duplicates of none of the others."""
    found = HashIndex(hashes.of(of)).query(hashes.of(samples))
    return [sample for sample in samples if sample.sha256 not in found]
