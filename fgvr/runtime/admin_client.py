"""Client of a running server: its memory figures and the actions of its admin API, as the server says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

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


def ask(
    server: Service, action: str, *, models: Sequence[str] = (), target: str | None = None, size: str | float | None = None, model: str = ""
) -> dict[str, Any]:
    """What the server says to stats, pressure, models, system or cache, or to one of these actions, with what came of it:

    `cleanup` drops idle models: all, down to a `target` ("8GiB"), or by name; `limit` sets the budget to a `size` (a bare number is GiB,
    as the server counts); MODEL_ACTIONS act on one `model`, by key or role. Raises RemoteError, and ConfigError for what is no size.
    """
    patient = Service(server.url, server.token, _SLOW)
    if action == "cleanup":
        wish: dict[str, Any] = {"models": list(models)} if models else {}
        if target is not None:
            wish["target_bytes"] = _bytes(target)
        return patient.post(f"{_MEMORY}/cleanup", wish or None)
    if action == "limit":
        if size is None:
            raise ConfigError("action=limit needs a size: limit=18GiB")
        return patient.post(f"{_MEMORY}/limit", limit_gb=_bytes(size) / 2**30)
    if action in MODEL_ACTIONS:
        return patient.post(f"/api/v1/models/{quote(model, safe='')}/{action}")
    found = server.get(f"{_MEMORY}/{'cache-stats' if action == 'cache' else action}")
    if action == "models" and isinstance(found, list):
        return {"models": found}
    if not isinstance(found, Mapping):
        raise RemoteError(f"the server's answer to {action} is none: {str(found)[:120]}")
    if missing := [name for name in _SHOWN.get(action, ()) if name not in found]:
        raise RemoteError(f"the server's answer lacks {', '.join(missing)}; it is another version, or no server of fgvr")
    return dict(found)


def _bytes(size: str | float) -> int:
    """Raises ConfigError: not a size."""
    try:
        return round(float(size) * 2**30)
    except ValueError:
        pass
    if (found := parse_bytes(str(size))) is None:
        raise ConfigError(f"{size}: no size; write 18GiB, 18GB or 18 (GiB)")
    return found
