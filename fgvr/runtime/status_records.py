"""What is said of memory to people and programs: the fields of the server's `/api/v1/memory/*`, of a pool and of this machine.

Importing it imports no pool, so a client that only reads these records starts quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from fgvr.errors import FgvrError
from fgvr.runtime import machine
from fgvr.runtime.machine import DeviceFigures, Process
from fgvr.types import ModelSpec
from fgvr.utils.text import format_bytes

if TYPE_CHECKING:
    from fgvr.runtime.monitor import Monitor
    from fgvr.runtime.pool import ModelPool


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """One of several devices. Bytes."""

    device: str
    memory_usage: int
    memory_limit: int
    peak: int
    models: tuple[str, ...]  # keys of those that are there


@dataclass(frozen=True, slots=True)
class Stats:
    """`memory/stats`. Bytes, and the same as text; sums where there are several devices."""

    total_models: int
    total_memory_usage: int
    memory_limit: int
    memory_pressure: bool
    system_available: int
    system_total: int
    formatted_usage: str
    formatted_limit: str
    formatted_system_available: str
    formatted_system_total: str
    other_processes: int
    other_processes_memory: int  # their USS together, as far as the system tells
    devices: tuple[DeviceStats, ...] = ()  # where there are several


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One row of `memory/models`. `tier`: where its weights are; bytes are estimated until it is loaded."""

    key: str
    role: str
    source: str
    device: str
    state: str
    tier: str
    bytes: int | None
    file_bytes: int | None
    leases: int
    hits: int
    loads: int
    idle_seconds: float
    last_used: float | None  # Unix seconds; None = never
    pinned: bool
    error: str


@dataclass(frozen=True, slots=True)
class SystemAnswer:
    """`memory/system`. Main memory, control group, swap, devices, and this package's other living processes."""

    ram_total: int
    ram_available: int
    ram_used_share: float
    cgroup_limit: int | None
    swap_total: int
    swap_used: int
    devices: tuple[DeviceFigures, ...]
    processes: tuple[Process, ...]


def stats(pool: ModelPool, monitor: Monitor) -> Stats:
    status, host = pool.status(), machine.host()
    others = tuple(machine.processes())
    return Stats(
        total_models=sum(m.here for m in status),
        total_memory_usage=status.used,
        memory_limit=status.budget,
        memory_pressure=monitor.pressure().pressure,
        system_available=host.free,
        system_total=host.total,
        formatted_usage=format_bytes(status.used),
        formatted_limit=format_bytes(status.budget),
        formatted_system_available=format_bytes(host.free),
        formatted_system_total=format_bytes(host.total),
        other_processes=len(others),
        other_processes_memory=sum(p.memory.uss or 0 for p in others),
        devices=tuple(
            DeviceStats(one.device, one.used, one.budget, one.peak, tuple(m.key for m in one if m.here)) for one in status.devices
        ),
    )


def models(pool: ModelPool, specs: Sequence[ModelSpec]) -> tuple[ModelAnswer, ...]:
    """Those of `specs` that the pool knows, on each device, with sizes from their files when they are not loaded. Loads nothing."""
    return tuple(answer for member in pool.members for answer in _models(member, specs))


def _models(pool: ModelPool, specs: Sequence[ModelSpec]) -> list[ModelAnswer]:
    status = {m.key: m for m in pool.status()}
    answers = []
    for spec in specs:
        known = status[spec.key]
        size, error = known.bytes or None, known.error
        if size is None:
            try:
                size = pool.loader(spec).estimate(spec)
            except FgvrError as missing:
                error = error or str(missing)
        tier = pool.device.name if known.placed else "host" if known.state == "parked" else "disk"
        own = {
            "device": pool.device.name,
            "tier": tier,
            "bytes": size,
            "file_bytes": _file_bytes(spec),
            "idle_seconds": round(known.idle_seconds, 3),
            "error": error,
        }
        shared = {field.name: getattr(known, field.name) for field in fields(ModelAnswer) if field.name not in own}
        answers.append(ModelAnswer(**shared, **own))
    return answers


def system(pool: ModelPool) -> SystemAnswer:
    host = machine.host()
    gpus = machine.gpus()
    # A GPU's own driver sees all that is on it; this process's allocator only what it holds itself.
    own = [member.device for member in pool.members]
    devices = (*map(machine.figures, own), *(gpu for gpu in gpus if gpu.name not in [device.name for device in own]))
    return SystemAnswer(
        ram_total=host.total,
        ram_available=host.free,
        ram_used_share=round(host.used_share, 4),
        cgroup_limit=host.cgroup_limit,
        swap_total=host.swap_total,
        swap_used=host.swap_used,
        devices=devices,
        processes=tuple(machine.processes()),
    )


def _file_bytes(spec: ModelSpec) -> int | None:
    """Of the weight files on this machine; None when there are none."""
    from fgvr.runtime.loaders import files

    folder = files.locate(spec)
    found = [] if folder is None else [*folder.glob("*.safetensors")]
    return sum(file.stat().st_size for file in found) or None
