"""Where models live: `pick_device` chooses; each device is a small class behind `base.Device`."""

from __future__ import annotations

from pathlib import Path

from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_bytes
from fgvr.runtime.devices.base import Device

__all__ = ["Device", "pick_device"]


def pick_device(name: str = "auto") -> Device:
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, or `simulated:24GiB` for trials. Raises ConfigError.

    `auto` imports torch only where the machine shows a GPU, so planning on a laptop stays instant.
    """
    kind, _, rest = name.partition(":")
    if kind == "cpu" and not rest:
        return _cpu()
    if kind == "simulated" and (size := parse_bytes(rest)):
        from fgvr.runtime.devices.simulated import SimulatedDevice

        return SimulatedDevice(size)
    if kind == "cuda" and (not rest or rest.isdigit()):
        from fgvr.runtime.devices.cuda import CudaDevice

        return CudaDevice(int(rest or 0))
    if name == "auto":
        return _auto()
    raise ConfigError(f"device {name!r} is not known; write auto, cpu, cuda, cuda:N or simulated:SIZE (simulated:24GiB)")


def _auto() -> Device:
    if any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists():
        from fgvr.runtime.devices.cuda import CudaDevice, cuda_available

        if cuda_available():
            return CudaDevice(0)
    return _cpu()


def _cpu() -> Device:
    from fgvr.runtime.devices.cpu import CpuDevice

    return CpuDevice()
