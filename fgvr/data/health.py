"""Is a dataset what it should be? Counts, unreadable files, and images that stand in two roles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fgvr.data.datasets import Dataset
from fgvr.data.leaks import exact_overlaps
from fgvr.types import Finding


def dataset_findings(dataset: Dataset) -> Iterator[Finding]:
    """What a person should know before trusting numbers on this dataset."""
    split = dataset.split
    yield Finding("dataset", bool(split.test), str(dataset), "" if split.test else "give it a test part, or lower dataset.shots")
    counts = Counter(sample.label for sample in split.test)
    untested = [category.name for category in dataset.catalog if category.id not in counts]
    yield Finding(
        "classes tested",
        not untested,
        f"{len(dataset.catalog) - len(untested)} of {len(dataset.catalog)}",
        f"no test image of: {', '.join(untested[:10])}" if untested else "",
    )
    bad = dataset.bad_images
    yield Finding("readable", not bad, f"{len(bad)} unusable images", f"mend or delete {bad[0]}" if bad else "")
    used = {sample.sha256: sample.key for sample in (*split.support, *split.calibration)}
    overlaps = exact_overlaps(split.test, used)
    cure = f"take out {overlaps[0]}" + (f" and {len(overlaps) - 1} more" if len(overlaps) > 1 else "") if overlaps else ""
    yield Finding("test apart from support", not overlaps, f"{len(overlaps)} exact copies", cure)
