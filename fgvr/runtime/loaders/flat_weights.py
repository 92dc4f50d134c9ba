"""A movable model's weights in one flat device buffer, and once parked in one flat host buffer; parameters and buffers are views.

Parking drops one tensor and restoring is one large copy, so nothing fragments and sizes are exact. Weights are only read: the host copy
is made by the first parking (until then main memory holds nothing) and stays, so later ones copy nothing. Views are swapped by
`tensor.data =`, which keeps ties and touches no process-wide state. On CUDA the host buffer is pinned while all pinned ones together
stay below 40 % of main memory: the driver cannot swap pinned pages out.

Only devices with memory of their own have a host tier. On the CPU and in unified memory a second copy would save nothing; the CPU has a
disk tier of the same shape (`flatfile`).
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import base, flatfile
from fgvr.runtime.loaders.flat_layout import layout, plain_bytes, refuse_written

if TYPE_CHECKING:
    import torch

PINNED_SHARE = 0.4  # of main memory (or of the control group's limit), all models together

_pinned_lock = threading.Lock()
_pinned: weakref.WeakSet[Movable] = weakref.WeakSet()  # whose host buffers are; the set forgets a model with its last reference


def place(module: torch.nn.Module, device: Device) -> base.Movable | None:
    """Bring a module that was built on the CPU to `device`. None: it stays where it is put (unified memory, a CPU without scratch)."""
    from fgvr.runtime.loaders import tensors

    if device.has_own_memory:
        return Movable(module, device)
    tensors.move(module, device)
    scratch = device.scratch
    return flatfile.FlatFile(module, scratch) if scratch is not None and flatfile.usable(scratch) else None


class Movable:
    """Moves a model between a device and main memory. One thread at a time, never during a forward pass: the pool sees to it."""

    kept = 0  # the device shows what did not come back
    cached = True

    def __init__(self, module: torch.nn.Module, device: Device) -> None:
        """Raises RuntimeConflict for tensors without plain bytes (quantised, sparse, meta). The device's OOM leaves the module whole."""
        self._module = module
        self._slots, regions, self.nbytes = layout(module)
        self._host: torch.Tensor | None = None
        buffer, claim = self._allocate(device)
        for region in regions:
            source = plain_bytes(region)
            buffer[region.offset : region.offset + source.numel()].copy_(source)
        device.synchronize()
        self._attach(buffer, claim)

    @property
    def parked(self) -> bool:
        return self._buffer is None

    @property
    def host_needed(self) -> int:
        """In main memory while parked."""
        return self.nbytes

    @property
    def host_nbytes(self) -> int:
        """In main memory now: 0 until first parked."""
        return 0 if self._host is None else self._host.nbytes

    def prepare(self) -> int:
        """Make the host copy now, so that the first parking need not; its bytes."""
        if self._host is None and self._buffer is not None:
            self._host = self._host_copy(self._buffer)
        return self.host_nbytes

    def park(self) -> int:
        """Bytes freed on the device. Raises RuntimeConflict when a forward pass has written to the weights: they would be lost."""
        if self._buffer is None:
            return 0
        refuse_written(self._module, self._slots, self._versions)
        if self._host is None:
            self._host = self._host_copy(self._buffer)
        self._swap(self._host)
        self._buffer = self._claim = None
        return self.nbytes

    def restore(self, device: Device) -> int:
        """Bytes brought back to the device. Its OOM leaves the model parked."""
        if self._host is None or self._buffer is not None:
            return 0
        buffer, claim = self._allocate(device)
        buffer.copy_(self._host, non_blocking=True)
        device.synchronize()
        self._attach(buffer, claim)
        return self.nbytes

    def _allocate(self, device: Device) -> tuple[torch.Tensor, Any]:
        """The flat buffer, and what a simulated device counts for it."""
        import torch

        allocate = getattr(device, "allocate", None)
        claim = allocate(self.nbytes) if allocate is not None else None
        return torch.empty(self.nbytes, dtype=torch.uint8, device=device.torch_name), claim

    def _attach(self, buffer: torch.Tensor, claim: Any) -> None:
        self._swap(buffer)
        self._buffer: torch.Tensor | None = buffer
        self._claim = claim
        self._versions = [slot.tensor._version for slot in self._slots]

    def _swap(self, buffer: torch.Tensor) -> None:
        for slot in self._slots:
            slot.tensor.data = slot.view(buffer)

    def _host_copy(self, buffer: torch.Tensor) -> torch.Tensor:
        """Pinned for CUDA while the cap allows."""
        import torch

        with _pinned_lock:
            others = sum(movable.nbytes for movable in _pinned)
            pinned = buffer.is_cuda and others + self.nbytes <= PINNED_SHARE * CpuDevice().total
            if pinned:
                _pinned.add(self)
        try:
            host = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=pinned)
            host.copy_(buffer)
        except BaseException:
            _pinned.discard(self)
            raise
        return host
