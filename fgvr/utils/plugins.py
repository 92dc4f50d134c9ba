"""Parts by name: one that is shipped, an entry point of an installed package, or the dotted name of an object in any module."""

from collections.abc import Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any

from fgvr.errors import ConfigError


def find_plugin(group: str, name: str, shipped: Mapping[str, str], key: str) -> Any:
    """The object that `name` means.

    Args:
        group: the entry points of other packages, such as `fgvr.loaders`.
        shipped: dotted names of our own parts.
        key: the configuration key that `name` comes from, for the error.

    Raises:
        ConfigError: nothing has this name, or its module cannot be imported.
    """
    if "." in name or ":" in name:
        target = name
    elif (target := shipped.get(name) or _entry_points(group).get(name)) is None:
        known = ", ".join([*shipped, *sorted(_entry_points(group))])
        raise ConfigError(f"{key}={name} is not known; known are {known}, entry points of the group {group}, and dotted names")
    try:
        return resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}={name} cannot be imported ({error}); install its package, or put its folder on PYTHONPATH") from error


@cache
def _entry_points(group: str) -> dict[str, str]:
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=group)}
