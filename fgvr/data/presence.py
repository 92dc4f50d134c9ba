"""Are the images that an archive lists on the disk; and if not, what lies there instead?"""

from __future__ import annotations

from pathlib import Path

from fgvr.data.listing import Listing
from fgvr.types import Sample
from fgvr.utils.text import nearest


def missing(listing: Listing) -> list[Sample]:
    """Listed images that are not there, in the order of the lists."""
    return [sample for sample in (*listing.pool, *listing.test) if not Path(str(sample.image)).is_file()]


def absence(gone: list[Sample]) -> str:
    """In words: the first missing image, and where it may have gone (another suffix or case, a renamed folder). "" when none is missing."""
    if not gone:
        return ""
    more = f" (and {len(gone) - 1:,} more)" if len(gone) > 1 else ""
    return f"{gone[0].key}{more} is not there{_instead(Path(str(gone[0].image)))}; extract the archive again"


def _instead(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        upper = next(folder for folder in parent.parents if folder.is_dir())
        wanted = parent.relative_to(upper).parts[0]
        near = nearest(wanted, (f.name for f in upper.iterdir() if f.is_dir()))
        return f", nor its folder {wanted}" + (f" (there is {near[0]}: rename it back)" if near else "")
    twins = sorted(f.name for f in parent.iterdir() if f.stem.casefold() == path.stem.casefold())
    return f" (there is {twins[0]}: rename it back)" if twins else ""
