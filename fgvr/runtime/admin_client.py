"""Client of a running server: its memory figures and the actions of its admin API, as the server says them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgvr.errors import ConfigError, RemoteError
from fgvr.runtime.budget import parse_bytes
from fgvr.utils.service import Service

MODEL_ACTIONS = ("load", "evict", "pin", "unpin", "reset")
_SHOWN = {
    "stats": ("total_memory_usage", "formatted_usage", "formatted_limit"),
    "pressure": ("level", "recommended"),
    "system": ("ram_total", "devices"),
}  # what an answer must have to be one of a server of ours
_MEMORY = "/api/v1/memory"
_SLOW = 600.0  # seconds a load or a clean-up may take


def figures(server: Service, action: str) -> dict[str, Any]:
    """stats, pressure, models, system or cache. Raises RemoteError for an answer that is none."""
    found = server.get(f"{_MEMORY}/{'cache-stats' if action == 'cache' else action}")
    if action == "models" and isinstance(found, list):
        return {"models": found}
    if not isinstance(found, Mapping):
        raise RemoteError(f"the server's answer to {action} is none: {str(found)[:120]}")
    if missing := [name for name in _SHOWN.get(action, ()) if name not in found]:
        raise RemoteError(f"the server's answer lacks {', '.join(missing)}; it is another version, or no server of fgvr")
    return dict(found)


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
