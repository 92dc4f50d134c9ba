"""What is said of memory to people and programs, of a pool and of this machine."""

from __future__ import annotations

from collections.abc import Sequence

from fgvr.errors import FgvrError
from fgvr.runtime import machine
from fgvr.runtime.answered import ModelAnswer, PressureAnswer, Stats, SystemAnswer
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import files
from fgvr.runtime.monitor import Monitor
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from fgvr.utils.text import format_bytes


def stats(pool: ModelPool, monitor: Monitor) -> Stats:
    status, host = pool.status(), machine.host()
    others = tuple(machine.processes())
    return Stats(
        total_models=sum(m.here for m in status),
        total_memory_usage=status.used,
        memory_limit=status.budget,
        memory_pressure=bool(monitor.pressure()),
        system_available=host.free,
        system_total=host.total,
        formatted_usage=format_bytes(status.used),
        formatted_limit=format_bytes(status.budget),
        formatted_system_available=format_bytes(host.free),
        formatted_system_total=format_bytes(host.total),
        other_processes=len(others),
        other_processes_memory=sum(p.memory.uss or 0 for p in others),
    )


def pressure(monitor: Monitor) -> PressureAnswer:
    found = monitor.pressure()
    return PressureAnswer(bool(found), found.level, round(found.share, 4), found.used, found.limit, found.host_low, found.drop)


def models(pool: ModelPool, specs: Sequence[ModelSpec]) -> tuple[ModelAnswer, ...]:
    """Those of `specs` that the pool knows, with sizes from their files when they are not loaded. Loads nothing."""
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
        answers.append(
            ModelAnswer(
                key=known.key,
                role=known.role,
                source=known.source,
                state=known.state,
                tier=pool.device.name if known.placed else "host" if known.state == "parked" else "disk",
                bytes=size,
                file_bytes=_file_bytes(spec),
                leases=known.leases,
                hits=known.hits,
                loads=known.loads,
                idle_seconds=round(known.idle_seconds, 3),
                last_used=known.last_used,
                pinned=known.pinned,
                error=error,
            )
        )
    return tuple(answers)


def system(device: Device) -> SystemAnswer:
    host = machine.host()
    gpus = machine.gpus()
    # A GPU's own driver sees all that is on it; this process's allocator only what it holds itself.
    devices = (machine.figures(device), *(gpu for gpu in gpus if gpu.name != device.name))
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
    folder = files.locate(spec)
    found = [] if folder is None else [*folder.glob("*.safetensors")]
    return sum(file.stat().st_size for file in found) or None
