"""Where models live: a small class behind `base.Device` for each kind, found by name."""

from __future__ import annotations

from fgvr.errors import ConfigError
from fgvr.runtime.devices.base import Device
from fgvr.utils.plugins import find_plugin

__all__ = ["Device", "device_class", "fastest_dtype", "pick_device"]

SHIPPED = {
    "cpu": "fgvr.runtime.devices.cpu.CpuDevice",
    "cuda": "fgvr.runtime.devices.cuda.CudaDevice",
    "mps": "fgvr.runtime.devices.mps.MpsDevice",
    "mlx": "fgvr.runtime.devices.mlx.MlxDevice",
    "simulated": "fgvr.runtime.devices.simulated.SimulatedDevice",
}
_AUTO = ("cuda", "mps", "cpu")


def device_class(name: str) -> type[Device]:
    """The class of a device as `runtime.device` names it. Imports no tensor library, so that settings can come before torch.

    Raises ConfigError: no device has this name.
    """
    kind = name.partition(":")[0]
    if kind != "auto":
        return find_plugin("fgvr.devices", kind, SHIPPED, "runtime.device")
    return next(found for found in map(device_class, _AUTO) if found.may_be_here())


def pick_device(name: str = "auto") -> Device:
    """`auto` (the first GPU, else MPS, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`, `mlx`, `simulated:24GiB`, an entry point of the
    group `fgvr.devices`, or the dotted name of a `Device` class.

    `auto` imports torch only where the machine shows a GPU, so planning on a laptop stays instant. Raises ConfigError.
    """
    if name == "auto":
        return next(found for found in map(device_class, _AUTO) if found.is_here()).open("")
    _, colon, argument = name.partition(":")
    try:
        if colon and not argument:
            raise ConfigError("runtime.device: nothing follows the colon")
        return device_class(name).open(argument)
    except ConfigError as error:
        raise ConfigError(
            f"device {name!r}: {error}; write auto, cpu, cuda, cuda:N, mps, mlx or simulated:SIZE (simulated:24GiB)"
        ) from error


def fastest_dtype(name: str) -> str:
    """What `dtype=fastest` means on a device as `runtime.device` names it."""
    return device_class(name).fastest_dtype(name.partition(":")[2])
