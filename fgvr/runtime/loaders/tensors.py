"""What the loaders share about torch: a module as the pool holds it, its size, threads, progress bars."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import psutil

from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import movable, offloading

if TYPE_CHECKING:
    import torch

    from fgvr.runtime.loaders.base import Movable


class TorchModel:
    """Its size and its way to the device. The forward pass of a subclass keeps no state; whoever tokenises holds `lock`."""

    def __init__(self, fingerprint: str, module: Any, lock: threading.Lock, *, stays: bool = False) -> None:
        """`stays`: it was loaded on its device and cannot be moved."""
        self.fingerprint = fingerprint
        self.nbytes = module_bytes(module)
        self.movable: Movable | None = None
        self._module, self._lock = module, lock
        self._stays = stays or offloading.is_offloaded(module)

    def place(self, device: Device) -> None:
        """Bring the weights to the device. Its out-of-memory error leaves the module whole."""
        if self._stays:
            self._claim = device.allocate(self.nbytes)
        else:
            self.movable = movable.place(self._module, device)

    def settle(self) -> None:
        """After a call that failed: layers that were on the device for it alone leave it."""
        offloading.settle(self._module)


def module_bytes(module: torch.nn.Module) -> int:
    """Parameters and buffers, each storage once, so tied weights count once; of quantised ones what they are made of.

    Offloaded layers (on the meta device between their turns) are not there.
    """
    storages = {}
    for tensor in (*module.parameters(), *module.buffers()):
        for inner in inner_tensors(tensor):
            if not inner.is_meta:
                storage = inner.untyped_storage()
                storages[inner.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def inner_tensors(tensor: Any) -> Iterator[torch.Tensor]:
    """The tensors that hold the bytes: torchao's are wrappers, bitsandbytes keeps scales and tables beside the values."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from inner_tensors(getattr(tensor, name))
        return
    yield tensor
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (part for name in ("absmax", "code", "offset") if (part := getattr(state, name, None)) is not None)
        state = getattr(state, "state2", None)


def freeze(module: torch.nn.Module) -> torch.nn.Module:
    """Evaluation mode, no gradients."""
    return module.eval().requires_grad_(False)


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, name)


@cache
def set_threads() -> None:
    """As many threads as physical cores this process may use, unless OMP_NUM_THREADS says otherwise.

    Two spinning threads on one core are ten times slower than one.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        allowed = len(psutil.Process().cpu_affinity() or ()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, min(psutil.cpu_count(logical=False) or allowed, allowed)))


@contextmanager
def quiet_bars() -> Iterator[None]:
    """No progress bar of transformers for a load; the pool logs it, and ours would be broken by it."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():  # a device map may name a parameter of its own, beside modules (offloading.py)
            warnings.filterwarnings("ignore", message="The following device_map keys do not match any submodules")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
