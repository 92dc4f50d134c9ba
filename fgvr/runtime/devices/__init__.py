"""Where models live: a small class behind `base.Device` for each kind, found by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fgvr.errors import ConfigError
from fgvr.runtime.devices.base import Device
from fgvr.utils.plugins import find_plugin

__all__ = ["ALL", "AUTO", "Device", "device_class", "device_names", "fastest_dtype", "pick_device", "pick_devices"]

SHIPPED = {
    "cpu": "fgvr.runtime.devices.cpu.CpuDevice",
    "cuda": "fgvr.runtime.devices.cuda.CudaDevice",
    "mps": "fgvr.runtime.devices.mps.MpsDevice",
    "mlx": "fgvr.runtime.devices.mlx.MlxDevice",
    "simulated": "fgvr.runtime.devices.simulated.SimulatedDevice",
}
_BEST_FIRST = ("cuda", "mps", "cpu")
AUTO, ALL = "auto", "all"


def device_names(asked: str | Sequence[str]) -> tuple[str, ...]:
    """What `runtime.device` names: one device, `all` of the machine's GPUs, or a list. Opens none.

    Raises ConfigError: it is neither text nor a list, or the devices are of several kinds, which would compute different answers.
    """
    names = [asked] if isinstance(asked, str) else list(asked) if isinstance(asked, Sequence) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"runtime.device={asked!r}: write the name of a device, a list such as [cuda:0,cuda:1], or all")
    kinds = {name.partition(":")[0] for name in names}
    if len(names) > 1 and (len(kinds) > 1 or kinds & {AUTO, ALL}):
        raise ConfigError(f"runtime.device=[{','.join(names)}]: name devices of one kind, such as [cuda:0,cuda:1], or write all")
    return tuple(names)


def pick_devices(asked: str | Sequence[str]) -> tuple[Device, ...]:
    """The devices that `runtime.device` names, each opened once. Raises ConfigError, also for one that is named twice."""
    names = device_names(asked)
    if names == (ALL,):
        found = next(found for found in map(device_class, _BEST_FIRST) if found.is_here())
        names = found.all_names()
    devices = [pick_device(name) for name in names]
    twice = [name for name, count in Counter(device.name for device in devices).items() if count > 1]
    for number, device in enumerate(devices):
        if device.name in twice and not device.is_numbered:
            raise ConfigError(f"runtime.device: {device.name} is named twice; one pool per device counts what is on it")
        if twice:
            device.name = f"{device.name}:{number}"
    return tuple(devices)


def device_class(name: str) -> type[Device]:
    """The class of a device as `runtime.device` names it. Imports no tensor library, so that settings can come before torch.

    Raises ConfigError: no device has this name.
    """
    kind = name.partition(":")[0]
    if kind not in (AUTO, ALL):
        return find_plugin("fgvr.devices", kind, SHIPPED, "runtime.device")
    return next(found for found in map(device_class, _BEST_FIRST) if found.may_be_here())


def pick_device(name: str = "auto") -> Device:
    """`auto` (the first GPU, else MPS, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`, `mlx`, `simulated:24GiB`, an entry point of the
    group `fgvr.devices`, or the dotted name of a `Device` class.

    `auto` imports torch only where the machine shows a GPU, so planning on a laptop stays instant. Raises ConfigError.
    """
    if name in (AUTO, ALL):
        return next(found for found in map(device_class, _BEST_FIRST) if found.is_here()).open("")
    _, colon, argument = name.partition(":")
    try:
        if colon and not argument:
            raise ConfigError("runtime.device: nothing follows the colon")
        return device_class(name).open(argument)
    except ConfigError as error:
        raise ConfigError(
            f"device {name!r}: {error}; write auto, cpu, cuda, cuda:N, all, mps, mlx or simulated:SIZE (simulated:24GiB)"
        ) from error


def fastest_dtype(name: str) -> str:
    """What `dtype=fastest` means on a device as `runtime.device` names it."""
    return device_class(name).fastest_dtype(name.partition(":")[2])
