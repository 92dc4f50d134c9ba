"""A dataset's classes: one id each, and every spelling that means it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from fgvr.errors import DatasetError
from fgvr.types import Category
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
