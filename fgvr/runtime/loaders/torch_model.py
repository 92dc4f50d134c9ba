"""A loaded PyTorch module as the pool holds it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from fgvr.runtime.loaders import movable, offloading, tensors

if TYPE_CHECKING:
    from fgvr.runtime.devices.base import Device
    from fgvr.runtime.loaders.base import Movable


class TorchModel:
    """Its size and its way to the device. The forward pass of a subclass keeps no state; whoever tokenises holds `lock`."""

    def __init__(self, fingerprint: str, module: Any, lock: threading.Lock) -> None:
        self.fingerprint = fingerprint
        self.nbytes = tensors.module_bytes(module)
        self.movable: Movable | None = None
        self._module, self._lock = module, lock

    def place(self, device: Device) -> None:
        """Bring the weights to the device. Its out-of-memory error leaves the module whole."""
        if not offloading.is_offloaded(self._module):
            self.movable = movable.place(self._module, device)
        elif (allocate := getattr(device, "allocate", None)) is not None:  # it was loaded where it stays; a simulated device counts
            self._claim = allocate(self.nbytes)

    def settle(self) -> None:
        """After a call that failed: layers that were on the device for it alone leave it."""
        offloading.settle(self._module)
