"""From a `_target_` to the object that it stands for."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from fgvr.errors import ConfigError, FgvrError
from fgvr.utils.plugins import ABSENT, resolve

if TYPE_CHECKING:
    from fgvr.config.group import Leaf


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
    except TypeError as error:
        raise ConfigError(f"{leaf.factory}: {error}") from None
    made = make(**arguments)
    if not isinstance(made, kinds):
        expected = " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise FgvrError(f"the {key} {leaf.factory} gives a {type(made).__name__}; expected is a {expected}")
    return made
