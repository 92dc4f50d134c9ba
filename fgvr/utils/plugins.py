"""Parts by name: one that is shipped, an entry point of an installed package, or the dotted name of an object in any module."""

from collections.abc import Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any

from fgvr.errors import ConfigError, causes

OUTSIDE: dict[str, tuple[str, str]] = {}  # dotted name of a part that is not ours -> its configuration key, the module it lives in
ABSENT = (ImportError, AttributeError, ValueError, SyntaxError)  # what `resolve` raises where there is no such object


def resolve(target: str, key: str) -> Any:
    """The object of a dotted name. One that is not ours is remembered, so that `blame` can tell whose code failed."""
    if target.startswith("fgvr."):
        return resolve_name(target)
    OUTSIDE.setdefault(target, (key, ""))
    found = resolve_name(target)
    OUTSIDE[target] = (key, getattr(found, "__module__", ""))
    return found


def blame(error: BaseException) -> str | None:
    """Which part from outside raised this error, and where; None: no such part did. Its traceback goes to the log of its own module."""
    import logging
    import traceback

    for cause in causes(error, meanwhile=False):
        for frame, line in reversed([*traceback.walk_tb(cause.__traceback__)]):
            module = frame.f_globals.get("__name__", "")
            for target, (key, home) in OUTSIDE.items():
                if module == home or target.startswith((f"{module}.", f"{module}:")):
                    what = "".join(traceback.format_exception_only(cause)).strip()
                    said, log = f"the {key} {target} raised {what} ({frame.f_code.co_filename}:{line})", logging.getLogger(module)
                    if not log.hasHandlers():
                        return said
                    log.error("%s", "".join(traceback.format_exception(error)))
                    return f"{said}; its traceback is in log.txt of the run, and logging.level=debug shows it"
    return None


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
        return resolve(target, key)
    except ABSENT as error:
        raise ConfigError(f"{key}={name} cannot be imported ({error}); install its package, or put its folder on PYTHONPATH") from error


@cache
def _entry_points(group: str) -> dict[str, str]:
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=group)}
