"""A dataset's classes, with every spelling that means one, and what a folder lists of their images, before any is opened."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fgvr.errors import DatasetError
from fgvr.types import Category, Sample
from fgvr.utils.text import nearest, normalise_name


@dataclass(frozen=True)
class Catalog:
    """Classes in a fixed order. Two classes that share an id, or a name or alias in any spelling, are a DatasetError."""

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if len(self._by_id) != len(self.categories):
            twice = sorted({c.id for c in self.categories if self._by_id[c.id] is not c})
            raise DatasetError(f"class ids must be unique; given more than once: {', '.join(twice[:10])}")
        _ = self._by_name

    def __len__(self) -> int:
        return len(self.categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    def __contains__(self, id: object) -> bool:
        return id in self._by_id

    def __getitem__(self, id: str) -> Category:
        """The class with this id; an unknown one is a DatasetError that lists near ones."""
        try:
            return self._by_id[id]
        except KeyError:
            near = nearest(id, self._by_id)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise DatasetError(f"no class has the id {id!r}{hint}") from None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._by_id)

    def names(self, ids: Iterable[str] | None = None) -> tuple[str, ...]:
        """Names of these ids, in their order; of all classes by default."""
        return tuple(self[id].name for id in (self.ids if ids is None else ids))

    def as_dict(self) -> dict[str, str]:
        """id -> name."""
        return {category.id: category.name for category in self.categories}

    def find(self, name: str) -> Category | None:
        """The class a name, alias or folder name means, in any spelling (`utils.text.normalise_name`); None when none does."""
        return self._by_name.get(normalise_name(name))

    @cached_property
    def _by_id(self) -> dict[str, Category]:
        return {category.id: category for category in self.categories}

    @cached_property
    def _by_name(self) -> dict[str, Category]:
        known: dict[str, Category] = {}
        for category in self.categories:
            for name in (category.name, *category.aliases):
                other = known.setdefault(normalise_name(name), category)
                if other is not category:
                    raise DatasetError(
                        f"classes {other.id!r} ({other.name}) and {category.id!r} ({category.name}) read the same as {name!r}; "
                        "rename one or merge them"
                    )
        return known


# --- what a folder lists -------------------------------------------------------------------------------------------------------

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
