"""What is said of memory to people and programs, as JSON values: of a pool and of this machine, and by the server's `/api/v1/memory/*`.

Bytes, unless a name says seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fgvr.errors import FgvrError
from fgvr.runtime import machine
from fgvr.runtime.monitor import Monitor
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from fgvr.utils.text import format_bytes

_OF_THE_POOL = ("key", "role", "source", "state", "leases", "hits", "loads", "last_used", "pinned")


def stats(pool: ModelPool, monitor: Monitor) -> dict[str, Any]:
    """`memory/stats`: figures, and the same as text; sums where there are several devices, and each under `devices`."""
    status, host = pool.status(), machine.host()
    sizes = {"usage": status.used, "limit": status.budget, "system_available": host.free, "system_total": host.total}
    devices = [
        {"device": d.device, "memory_usage": d.used, "memory_limit": d.budget, "peak": d.peak, "models": [m.key for m in d if m.here]}
        for d in status.devices
    ]
    return {
        "total_models": sum(m.here for m in status),
        "total_memory_usage": status.used,
        "memory_limit": status.budget,
        "memory_pressure": monitor.pressure().pressure,
        "system_available": host.free,
        "system_total": host.total,
        **{f"formatted_{name}": format_bytes(size) for name, size in sizes.items()},
        "devices": devices,
    }


def models(pool: ModelPool, specs: Sequence[ModelSpec]) -> list[dict[str, Any]]:
    """`memory/models`: those of `specs` that the pool knows, on each device. Loads nothing.

    `tier`: where a model's weights are; `bytes`: of its weights, estimated from its files until it is loaded; `last_used`: Unix seconds,
    None = never.
    """
    return [row for member in pool.members for row in _models(member, specs)]


def _models(pool: ModelPool, specs: Sequence[ModelSpec]) -> list[dict[str, Any]]:
    status = {m.key: m for m in pool.status()}
    rows = []
    for spec in specs:
        known = status[spec.key]
        size, error = known.bytes or None, known.error
        if size is None:
            try:
                size = pool.loader(spec).estimate(spec)
            except FgvrError as missing:
                error = error or str(missing)
        row: dict[str, Any] = {name: getattr(known, name) for name in _OF_THE_POOL}
        row["tier"] = pool.device.name if known.placed else "host" if known.state == "parked" else "disk"
        row |= {"bytes": size, "file_bytes": _file_bytes(spec), "idle_seconds": round(known.idle_seconds, 3)}
        rows.append(row | {"device": pool.device.name, "error": error})
    return rows


def system(pool: ModelPool) -> dict[str, Any]:
    """`memory/system`: main memory, control group, swap, devices."""
    host, own = machine.host(), [member.device for member in pool.members]
    # A GPU's own driver sees all that is on it; this process's allocator only what it holds itself.
    gpus = [gpu for gpu in machine.gpus() if gpu.name not in [device.name for device in own]]
    return {
        "ram_total": host.total,
        "ram_available": host.free,
        "ram_used_share": round(host.used_share, 4),
        "cgroup_limit": host.cgroup_limit,
        "swap_total": host.swap_total,
        "swap_used": host.swap_used,
        "devices": [asdict(device) for device in (*map(machine.figures, own), *gpus)],
    }


def _file_bytes(spec: ModelSpec) -> int | None:
    """Of the weight files on this machine; None when there are none."""
    from fgvr.runtime.loaders import files

    folder = files.locate(spec)
    found = [] if folder is None else [*folder.glob("*.safetensors")]
    return sum(file.stat().st_size for file in found) or None
