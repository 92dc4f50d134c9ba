"""What a folder of labelled images holds, before any image was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fgvr.data.catalog import Catalog
from fgvr.types import Sample
from fgvr.utils.text import nearest

SUPPORT_NAMES = ("support", "train", "training")
VALIDATION_NAMES = ("val", "valid", "validation")
TEST_NAMES = ("test", "testing", "query")
NO_SUPPORT = "add images to learn from, or take these classes out of the test"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds, before any image was opened. `test` is empty when the folder itself makes no split."""

    catalog: Catalog
    pool: tuple[Sample, ...]  # everything, or the support part of an official split
    test: tuple[Sample, ...] = ()
    official: bool = False
    own_names: Mapping[str, str] = field(default_factory=dict)  # class id -> what a published archive calls it
    checksums: Mapping[str, str] = field(default_factory=dict)  # key -> md5, where an archive brings them
    official_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # id -> known spellings, in the official order of classes
    notes: tuple[str, ...] = ()  # what was left aside


def missing_files(listing: Listing) -> list[Sample]:
    """Listed images that do not exist, in the order of the lists."""
    return [sample for sample in (*listing.pool, *listing.test) if not Path(str(sample.image)).is_file()]


def describe_missing_files(gone: list[Sample]) -> str:
    """The first missing image, and the file or folder it may have become (another suffix, case or name); "" when none is missing."""
    if not gone:
        return ""
    count = f"{len(gone):,} listed images are not there, the first: {gone[0].key}" if len(gone) > 1 else f"{gone[0].key} is not there"
    return f"{count}{_near_name(Path(str(gone[0].image)))}; correct the list, or extract the archive again"


def _near_name(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        upper = next(folder for folder in parent.parents if folder.is_dir())
        wanted = parent.relative_to(upper).parts[0]
        near = nearest(wanted, (f.name for f in upper.iterdir() if f.is_dir()))
        return f", nor its folder {wanted}" + (f" (there is {near[0]}: rename it back)" if near else "")
    twins = sorted(f.name for f in parent.iterdir() if f.stem.casefold() == path.stem.casefold())
    return f" (there is {twins[0]}: rename it back)" if twins else ""
