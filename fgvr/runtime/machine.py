"""What this machine and this process have and hold. Bytes; nothing is loaded, no tensor library is imported."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice


@dataclass(frozen=True, slots=True)
class Host:
    """Main memory as this process may use it: of the machine, or of its control group when that allows less."""

    total: int
    free: int
    physical: int
    swap_total: int
    swap_used: int

    @property
    def used_share(self) -> float:
        return 1 - self.free / self.total if self.total else 0.0

    @property
    def cgroup_limit(self) -> int | None:
        """None: no control group limits this process below the machine."""
        return self.total if self.total < self.physical else None


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """`uss`: what would come back if the process ended; None where the system does not let us look. `rss`: with shared pages."""

    uss: int | None
    rss: int


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One device as its own books have it."""

    name: str
    total: int
    free: int
    allocated: int
    reserved: int


def host() -> Host:
    cpu, swap = CpuDevice(), psutil.swap_memory()
    return Host(cpu.total, cpu.free(), psutil.virtual_memory().total, swap.total, swap.used)


def memory_of() -> ProcessMemory:
    """Of this process."""
    process = psutil.Process()
    try:
        full = process.memory_full_info()
        return ProcessMemory(full.uss, full.rss)
    except psutil.AccessDenied:
        return ProcessMemory(None, process.memory_info().rss)


def figures(device: Device) -> DeviceFigures:
    return DeviceFigures(device.name, device.total, device.free(), device.allocated(), device.reserved())


def gpus() -> list[DeviceFigures]:
    """Every NVIDIA GPU as its driver sees it, whoever holds the memory; none where there is no driver. Imports no tensor library."""
    try:
        import pynvml
    except ImportError:  # declared for Linux only
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
            used = int(memory.used)
            found.append(DeviceFigures(f"cuda:{index}", int(memory.total), int(memory.free), used, used))
        return found
    finally:
        pynvml.nvmlShutdown()
