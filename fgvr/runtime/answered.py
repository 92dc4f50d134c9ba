"""The records of `answers`: the fields of the server's `/api/v1/memory/*`. Apart from it, so that a client needs no pool to read them."""

from __future__ import annotations

from dataclasses import dataclass

from fgvr.runtime.machine import DeviceFigures, Process


@dataclass(frozen=True, slots=True)
class Stats:
    """`memory/stats`. Bytes, and the same as text."""

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


@dataclass(frozen=True, slots=True)
class PressureAnswer:
    """`memory/pressure`. `recommended`: idle models in the order in which they would go."""

    pressure: bool
    level: str
    share: float
    used: int
    limit: int
    host_low: str
    recommended: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One row of `memory/models`. `tier`: where its weights are; bytes are estimated until it is loaded."""

    key: str
    role: str
    source: str
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
