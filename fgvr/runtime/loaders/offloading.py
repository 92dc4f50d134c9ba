"""Language layers beside the device, by accelerate: each comes for its turn and goes. The arithmetic is in `fgvr.runtime.offload`.

Such a model cannot be parked: it has no flat buffer (`movable`), and its hooks know where its layers lie. It is dropped and read again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fgvr.runtime.devices.base import Device
from fgvr.runtime.sizes.footprint import layer_index

if TYPE_CHECKING:
    import torch


def load(read: Callable[..., torch.nn.Module], skeleton: torch.nn.Module, count: int, device: Device) -> torch.nn.Module:
    """The module with its last `count` language layers beside the device, and all else on it.

    Args:
        read: `from_pretrained`, which is told where everything lies.
        skeleton: the module without values.
    """
    names = {name for name, _ in skeleton.named_modules() if layer_index(name) is not None and name.rpartition(".")[2].isdigit()}
    away = set(sorted(names, key=lambda name: layer_index(name) or 0)[-count:])
    place = "disk" if device.torch_name == "cpu" else device.offload_place
    # Layers are read from the model's own files; the folder is for what has to be converted first. It goes with the module.
    folder = tempfile.mkdtemp(prefix=f"fgvr-offload-{os.getpid()}-")
    try:
        module = read(device_map=_places(skeleton, away, device.torch_name, place), offload_folder=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(module, shutil.rmtree, folder, ignore_errors=True)
    return module


def _places(module: torch.nn.Module, away: set[str], here: str, there: str, prefix: str = "") -> dict[str, str]:
    """Where each part lies: whole modules where they can be named as a whole."""
    places = {prefix + name: here for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
    for name, child in module.named_children():
        path = prefix + name
        if path in away:
            places[path] = there
        elif any(other.startswith(f"{path}.") for other in away):
            places |= _places(child, away, here, there, f"{path}.")
        else:
            places[path] = here
    return places


def is_offloaded(module: torch.nn.Module) -> bool:
    return len(set((getattr(module, "hf_device_map", None) or {}).values())) > 1


def settle(module: torch.nn.Module) -> None:
    """Send layers back that a call which failed in its middle has left on the device."""
    if not is_offloaded(module):
        return
    for part in module.modules():
        hook: Any = getattr(part, "_hf_hook", None)
        if getattr(hook, "offload", False) and any(not tensor.is_meta for tensor in part.parameters(recurse=False)):
            hook.post_forward(part, None)
