"""What the sections of a configuration have in common, and how one that names a `_target_` becomes an object."""

import inspect
from copy import deepcopy
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fgvr.config.fields import Text
from fgvr.errors import ConfigError, FgvrError
from fgvr.utils.plugins import ABSENT, resolve


class Group(BaseModel):
    """Keys of one section, read as attributes or as `group["key"]`. Frozen; a key that is not there is an error."""

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


def locate(factory: str, key: str = "part") -> Any:
    """The class or function of a dotted name. Raises ConfigError. Args: key: of the configuration, where the name stands."""
    try:
        return resolve(factory, key)
    except ABSENT as error:
        cure = "; PYTHONPATH names the folder of a part of your own" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"_target_={factory}: there is no such class or function ({error}){cure}") from error


def instantiate(leaf: Leaf, key: str, *kinds: Any) -> Any:
    """What the factory of this leaf makes of its arguments. Raises ConfigError for arguments that it does not take, and FgvrError where it
    makes none of these `kinds`."""
    make, arguments = locate(leaf.factory, key), leaf.arguments
    try:
        inspect.signature(make).bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: a type of Python's own that tells no arguments
        raise ConfigError(f"{leaf.factory}: {error}") from None
    made = make(**arguments)
    if not isinstance(made, kinds):
        expected = " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise FgvrError(f"the {key} {leaf.factory} gives a {type(made).__name__}; expected is a {expected}")
    return made
