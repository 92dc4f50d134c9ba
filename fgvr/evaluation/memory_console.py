"""What `mode=memory` shows on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.runtime.status_records import ModelAnswer, PressureAnswer, Stats, SystemAnswer
from fgvr.store.stale_files import StaleFile
from fgvr.utils.text import format_bytes

_NO_SERVER = "no server: figures of this machine, and of a pool with this configuration"
Found = Stats | PressureAnswer | SystemAnswer | Sequence[ModelAnswer] | Sequence[StaleFile] | Mapping[str, Any]


def as_json(found: Found) -> dict[str, Any]:
    """The record's own fields; lists under `models` or `leftovers`."""
    match found:
        case Stats() | PressureAnswer() | SystemAnswer():
            return asdict(found)
        case Mapping():
            return dict(found)
        case [ModelAnswer(), *_]:
            return {"models": [asdict(row) for row in found]}  # type: ignore[call-overload]
    removed = sum(left.bytes for left in found if isinstance(left, StaleFile) and not left.kept)
    rows = [asdict(left) | {"path": str(left.path)} for left in found if isinstance(left, StaleFile)]
    return {"leftovers": rows, "removed_bytes": removed, "formatted_removed": format_bytes(removed)}


def tables(found: Found, server: str | None = None) -> list[RenderableType]:
    """`server`: whose figures these are; None: of this machine."""
    whose = Text(f"server: {server}" if server else _NO_SERVER)
    match found:
        case Stats():
            return [_pairs("memory", _stats(found)), whose]
        case PressureAnswer():
            return [_pairs("pressure", _pressure(found)), whose]
        case SystemAnswer():
            return [*_system(found), whose] if server else _system(found)
        case Mapping():
            return [_pairs("answer", {name.replace("_", " "): _said(name, value) for name, value in found.items()}), whose]
    models = [row for row in found if isinstance(row, ModelAnswer)]
    if models or server:
        return [_models(models), whose]
    return _stale_files([row for row in found if isinstance(row, StaleFile)])


def _said(name: str, value: Any) -> str:
    """A value of a server's answer; fields of bytes are named so, or are sizes in the contract's words."""
    if isinstance(value, int) and not isinstance(value, bool) and ("bytes" in name or name in ("released", "limit", "used", "total")):
        return format_bytes(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _stats(found: Stats) -> dict[str, str]:
    return {
        "models loaded": str(found.total_models),
        "in use of the budget": f"{found.formatted_usage} of {found.formatted_limit}",
        "pressure": "yes" if found.memory_pressure else "no",
        "main memory available": f"{found.formatted_system_available} of {found.formatted_system_total}",
        "other fgvr processes": f"{found.other_processes}, holding {format_bytes(found.other_processes_memory)}",
    }


def _pressure(found: PressureAnswer) -> dict[str, str]:
    return {
        "pressure": "yes" if found.pressure else "no",
        "level": found.level,
        "in use of the budget": f"{format_bytes(found.used)} of {format_bytes(found.limit)} ({found.share:.0%})",
        "main memory": found.host_low or "enough",
        "would drop": ", ".join(found.recommended) or "nothing",
    }


def _system(found: SystemAnswer) -> list[RenderableType]:
    available = f"{format_bytes(found.ram_available)} of {format_bytes(found.ram_total)} available"
    pairs = {
        "main memory": f"{available} ({found.ram_used_share:.0%} used)",
        "control group": f"limits it to {format_bytes(found.cgroup_limit)}" if found.cgroup_limit else "sets no lower limit",
        "swap": f"{format_bytes(found.swap_used)} of {format_bytes(found.swap_total)} used" if found.swap_total else "none",
    }
    devices = Table("device", "total", "free", "this process", "reserved", title="devices", title_justify="left")
    for device in found.devices:
        devices.add_row(device.name, *map(format_bytes, (device.total, device.free, device.allocated, device.reserved)))
    parts: list[RenderableType] = [_pairs("this machine", pairs), devices]
    if found.processes:
        table = Table("pid", "holds (USS)", "runs for", "command", title="other fgvr processes", title_justify="left")
        for process in found.processes:
            held = "not ours to see" if process.memory.uss is None else format_bytes(process.memory.uss)
            table.add_row(str(process.pid), held, f"{process.seconds:,.0f} s", process.command)
        parts.append(table)
    return parts


def _models(rows: Sequence[ModelAnswer]) -> RenderableType:
    table = Table("model", "source", "state", "tier", "size", "files", "leases", "hits", "loads", "")
    for row in rows:
        sizes = ("unknown" if n is None else format_bytes(n) for n in (row.bytes, row.file_bytes))
        counts = (str(n) for n in (row.leases, row.hits, row.loads))
        table.add_row(row.key, row.source, row.state, row.tier, *sizes, *counts, row.error or ("pinned" if row.pinned else ""))
    return table


def _stale_files(rows: Sequence[StaleFile]) -> list[RenderableType]:
    if not rows:
        return [Text("nothing to clean up: no dead run has left anything")]
    table = Table("what", "where", "size", "age", "done")
    for row in rows:
        age = f"{row.age_seconds / 3600:,.1f} h"
        table.add_row(
            row.kind, Text(str(row.path), overflow="fold"), format_bytes(row.bytes), age, f"kept: {row.kept}" if row.kept else "removed"
        )
    removed = [row for row in rows if not row.kept]
    return [table, Text(f"removed {len(removed)} of {len(rows)}: {format_bytes(sum(row.bytes for row in removed))}")]


def _pairs(title: str, pairs: Mapping[str, str]) -> RenderableType:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("quantity")
    table.add_column("value")
    for name, value in pairs.items():
        table.add_row(name, value)
    return table
