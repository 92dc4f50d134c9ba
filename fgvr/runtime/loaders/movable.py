"""A model's weights in one flat device buffer, and once parked in one flat host buffer; parameters and buffers are views.

Parking drops one tensor and restoring is one large copy, so nothing fragments and sizes are exact. Weights are only read: the host copy
is made by the first parking (until then main memory holds nothing) and stays, so later ones copy nothing. Views are swapped by
`tensor.data =`, which keeps ties and touches no process-wide state. On CUDA the host buffer is pinned while all pinned ones together
stay below 40 % of main memory: the driver cannot swap pinned pages out.

Only devices with memory of their own have a host tier. On the CPU and in unified memory a second copy would save nothing.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgvr.errors import RuntimeConflict
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice

if TYPE_CHECKING:
    import torch

ALIGNMENT = 128  # bytes: one cache line of a GPU, and more than any vector load needs
PINNED_SHARE = 0.4  # of main memory (or of the control group's limit), all models together

_pinned_lock = threading.Lock()
_pinned: weakref.WeakSet[MovableWeights] = weakref.WeakSet()  # whose host buffers are; the set forgets a model with its last reference


def place(module: torch.nn.Module, device: Device) -> MovableWeights | None:
    """Bring a module that was built on the CPU to `device`. None: it stays there (unified memory, the CPU)."""
    if device.has_own_memory:
        return MovableWeights(module, device)
    module.to(device.torch_name)
    return None


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in the flat buffer, in bytes; tied tensors have one place."""

    name: str
    tensor: torch.Tensor
    offset: int

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        size = self.tensor.numel() * self.tensor.element_size()
        return buffer[self.offset : self.offset + size].view(self.tensor.dtype).as_strided(self.tensor.shape, self.tensor.stride())


class MovableWeights:
    """loaders.base.Movable. One thread at a time, never during a forward pass: the pool sees to it."""

    def __init__(self, module: torch.nn.Module, device: Device) -> None:
        """Raises RuntimeConflict for tensors without plain bytes (quantised, sparse, meta). The device's OOM leaves the module whole."""
        self._module = module
        self._slots, self.nbytes = _layout(module)
        self._host: torch.Tensor | None = None
        buffer, claim = self._allocate(device)
        for slot in self._slots:
            slot.view(buffer).copy_(slot.tensor)
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
        self._refuse_written()
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

        claim = device.allocate(self.nbytes)
        return torch.empty(self.nbytes, dtype=torch.uint8, device=device.torch_name), claim

    def _attach(self, buffer: torch.Tensor, claim: Any) -> None:
        self._swap(buffer)
        self._buffer: torch.Tensor | None = buffer
        self._claim = claim
        self._versions = [slot.tensor._version for slot in self._slots]

    def _swap(self, buffer: torch.Tensor) -> None:
        for slot in self._slots:
            slot.tensor.data = slot.view(buffer)

    def _refuse_written(self) -> None:
        """A version counts in-place writes; a replaced tensor is not ours any more. Raises RuntimeConflict."""
        present = {id(tensor) for _, tensor in _named_tensors(self._module)}
        for slot, version in zip(self._slots, self._versions, strict=True):
            if slot.tensor._version != version or id(slot.tensor) not in present:
                raise RuntimeConflict(f"{slot.name} was changed since it was loaded: weights are only read, so this model cannot be parked")
        if len(present) != len(self._slots):
            raise RuntimeConflict("parameters or buffers were added since this model was loaded: it cannot be parked")

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


def _named_tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _layout(module: torch.nn.Module) -> tuple[list[Slot], int]:
    """A place for every tensor, tied ones together, and the bytes of all."""
    import torch

    slots: list[Slot] = []
    offsets: dict[Any, int] = {}
    length = 0
    for name, tensor in _named_tensors(module):
        if (
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.is_meta
            or tensor.is_quantized
        ):
            raise RuntimeConflict(
                f"{name} ({type(tensor).__name__} on {tensor.device}) has no plain bytes: such a model is loaded on its device"
            )
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        if place not in offsets:
            offsets[place] = -(-length // ALIGNMENT) * ALIGNMENT
            length = offsets[place] + tensor.numel() * tensor.element_size()
        slots.append(Slot(name, tensor, offsets[place]))
    return slots, length
