"""From a `_target_` to the object that it stands for."""

from __future__ import annotations

import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

from fgvr.errors import ConfigError

if TYPE_CHECKING:
    from fgvr.config.group import Leaf


def locate(factory: str) -> Any:
    """The class or function of a dotted name. Raises ConfigError."""
    try:
        return pkgutil.resolve_name(factory)
    except (ImportError, AttributeError, ValueError) as error:
        cure = "; PYTHONPATH names the folder of a part of your own" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"_target_={factory}: there is no such class or function ({error}){cure}") from error


def instantiate(leaf: Leaf) -> Any:
    """What the factory of this leaf makes of its arguments. Raises ConfigError for arguments that it does not take."""
    make, arguments = locate(leaf.factory), leaf.arguments
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{leaf.factory}: {error}") from None
    return make(**arguments)
