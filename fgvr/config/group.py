"""What the sections of a configuration have in common: they are frozen, they know which of their keys are there, and they refuse others."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fgvr.config.fields import Text


class Group(BaseModel):
    """Keys of one section; they are read as attributes, or as `group["key"]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        """Whether the configuration has this key; many exist only with some options."""
        return key in self.model_fields_set

    def to_dict(self) -> dict[str, Any]:
        """As dicts and lists, keys that no option brought left out."""
        fields = type(self).model_fields
        return {(name in fields and fields[name].alias) or name: to_dict(value) for name, value in self if name in self}


def to_dict(value: Any) -> Any:
    """Of a group; a copy of any other value."""
    return value.to_dict() if isinstance(value, Group) else deepcopy(value)


class Leaf(Group):
    """What one object is made from: `factory` is the dotted name of what makes it, all other keys are its arguments.

    A factory of somebody else may take keys that are unknown here.
    """

    model_config = ConfigDict(extra="allow")

    factory: Text = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_dict().items() if key != "_target_"}
