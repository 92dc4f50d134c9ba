"""Client of a running server: its memory figures and the actions of its admin API, as the records that are shown for this machine, too."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fgvr.errors import ConfigError, RemoteError
from fgvr.runtime.budget import parse_bytes
from fgvr.runtime.pressure import Pressure
from fgvr.runtime.status_records import ModelAnswer, Stats, SystemAnswer
from fgvr.utils.service import Service

MODEL_ACTIONS = ("load", "evict", "pin", "unpin", "reset")
_RECORDS = {"stats": Stats, "pressure": Pressure, "system": SystemAnswer, "models": tuple[ModelAnswer, ...], "cache": dict}
_MEMORY = "/api/v1/memory"
_SLOW = 600.0  # seconds a load or a clean-up may take


def figures(server: Service, action: str) -> Any:
    """stats, pressure, models, system or cache: a record, a tuple of rows, or (cache) what the server says."""
    found = server.get(f"{_MEMORY}/{'cache-stats' if action == 'cache' else action}")
    if action == "models" and isinstance(found, Mapping):
        found = found["models"]
    return _read(_RECORDS[action], found)


def cleanup(server: Service, *models: str, target: str | None = None) -> Any:
    """Drop idle models: all, down to a target ("8GiB"), or by name. What the server says came back."""
    wish: dict[str, Any] = {"models": list(models)} if models else {}
    if target is not None:
        wish["target_bytes"] = _bytes(target)
    return _patient(server).post(f"{_MEMORY}/cleanup", wish or None)


def limit(server: Service, size: str | float) -> Any:
    """Set the budget; a bare number is GiB, as the server counts."""
    return _patient(server).post(f"{_MEMORY}/limit", limit_gb=_bytes(size) / 2**30)


def model(server: Service, control: str, name: str) -> Any:
    """One of MODEL_ACTIONS, on a model by key or role."""
    from urllib.parse import quote

    return _patient(server).post(f"/api/v1/models/{quote(name, safe='')}/{control}")


def _read(hint: Any, value: Any) -> Any:
    """A value of this type from JSON; fields that are not known are left out. Raises RemoteError when the other side lacks one."""
    if typing.get_origin(hint) is tuple:
        return tuple(_read(typing.get_args(hint)[0], item) for item in value)
    if not is_dataclass(hint):
        return value
    if not isinstance(value, Mapping):
        raise RemoteError(f"the server's answer is no {getattr(hint, '__name__', hint)}: {str(value)[:120]}")
    if missing := [field.name for field in fields(hint) if field.name not in value]:
        raise RemoteError(f"the server's answer lacks {', '.join(missing)}; it is another version, or no server of fgvr")
    return hint(**{name: _read(kind, value[name]) for name, kind in typing.get_type_hints(hint).items()})  # type: ignore[operator]


def _bytes(size: str | float) -> int:
    """Raises ConfigError: not a size."""
    try:
        return round(float(size) * 2**30)
    except ValueError:
        pass
    if (found := parse_bytes(str(size))) is None:
        raise ConfigError(f"{size}: no size; write 18GiB, 18GB or 18 (GiB)")
    return found


def _patient(server: Service) -> Service:
    return Service(server.url, server.token, _SLOW)
