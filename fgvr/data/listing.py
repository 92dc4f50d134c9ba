"""What a folder of labelled images holds, before any image was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fgvr.data.catalog import Catalog
from fgvr.types import Sample

SUPPORT_NAMES = ("support", "train", "training")
VALIDATION_NAMES = ("val", "valid", "validation")
TEST_NAMES = ("test", "testing", "query")


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
