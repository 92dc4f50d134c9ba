"""Where a model's tensors lie in one flat buffer or file: tied bytes once, aligned, and only what has plain bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgvr.errors import RuntimeConflict

if TYPE_CHECKING:
    import torch

ALIGNMENT = 128  # bytes: one cache line of a GPU, and more than any vector load needs


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in the flat buffer: values from its start, shape, strides in values."""

    name: str
    tensor: torch.Tensor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        import torch

        empty = torch.empty(0, dtype=self.tensor.dtype, device=buffer.device)
        return empty.set_(buffer.untyped_storage(), self.offset, self.shape, self.strides)


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of one storage that overlapping (tied) tensors share: copied once, to `offset` in the flat buffer."""

    storage: torch.UntypedStorage
    begin: int
    end: int
    offset: int


def refuse_written(module: torch.nn.Module, slots: list[Slot], versions: list[int]) -> None:
    """A version counts in-place writes; a replaced tensor is not ours any more. Raises RuntimeConflict."""
    present = {id(tensor) for _, tensor in _named_tensors(module)}
    for slot, version in zip(slots, versions, strict=True):
        if slot.tensor._version != version or id(slot.tensor) not in present:
            raise RuntimeConflict(f"{slot.name} was changed since it was loaded: weights are only read, so this model cannot be parked")
    if len(present) != len(slots):
        raise RuntimeConflict("parameters or buffers were added since this model was loaded: it cannot be parked")


def plain_bytes(region: Region) -> torch.Tensor:
    """A view of the region's bytes."""
    import torch

    plain = torch.empty(0, dtype=torch.uint8, device=region.storage.device)
    return plain.set_(region.storage, region.begin, (region.end - region.begin,), (1,))


def _named_tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def layout(module: torch.nn.Module) -> tuple[list[Slot], list[Region], int]:
    """A place for every tensor, and what to copy where. Bytes that tensors share are laid out once, as one region."""
    extents: dict[tuple[Any, int], list[tuple[int, int, str, torch.Tensor]]] = {}
    for name, tensor in _named_tensors(module):
        _refuse_unplain(name, tensor)
        storage = tensor.untyped_storage()
        begin = int(tensor.storage_offset()) * tensor.element_size()
        steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = begin + (int(steps) + 1) * tensor.element_size() if tensor.numel() else begin
        # Empty tensors share the null pointer; nothing is tied by that.
        extents.setdefault((tensor.device, storage.data_ptr()), []).append((begin, end, name, tensor))
    slots: list[Slot] = []
    regions: list[Region] = []
    cursor = 0
    for found in extents.values():
        found.sort(key=lambda extent: extent[:2])
        for group in _overlapping(found):
            begin, end = group[0][0], max(extent[1] for extent in group)
            # The same remainder as in the source keeps every tensor of the group aligned to its type.
            offset = -(-cursor // ALIGNMENT) * ALIGNMENT + begin % 16
            for start, _, name, tensor in group:
                place = (offset + start - begin) // tensor.element_size()
                slots.append(Slot(name, tensor, place, tuple(tensor.shape), tensor.stride()))
            if end > begin:
                regions.append(Region(group[0][3].untyped_storage(), begin, end, offset))
            cursor = offset + end - begin
    return slots, regions, cursor


def _overlapping(extents: list[tuple[int, int, str, torch.Tensor]]) -> list[list[tuple[int, int, str, torch.Tensor]]]:
    """Sorted extents, grouped where bytes are shared; neighbours that only touch stay apart."""
    groups: list[list[tuple[int, int, str, torch.Tensor]]] = []
    reach = -1
    for extent in extents:
        if groups and extent[0] < reach:
            groups[-1].append(extent)
        else:
            groups.append([extent])
        reach = max(reach, extent[1])
    return groups


def _refuse_unplain(name: str, tensor: torch.Tensor) -> None:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise RuntimeConflict(
            f"{name} ({type(tensor).__name__} on {tensor.device}) has no plain bytes: such a model is loaded on its device"
        )
