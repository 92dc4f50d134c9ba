"""One NVIDIA GPU (or an AMD one under ROCm), through PyTorch's caching allocator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from fgvr.errors import ConfigError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice

_AMPERE = (8, 0)  # the first NVIDIA generation with bfloat16 units


class CudaDevice(Device):
    """Counts tensors exactly; a hard cap makes the allocator itself refuse what would exceed the budget."""

    exact = has_own_memory = quantizes = probes = True
    name = torch_name = allocator = "cuda"
    offload_place, offload_rate = "cpu", 12e9  # over PCIe 4, from memory that is not pinned
    host_share = 0.4  # what may be pinned

    def __init__(self, index: int = 0, torch: Any = None) -> None:
        """`torch`: what stands in for PyTorch in tests."""
        if torch is None:
            import torch
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise ConfigError(f"device cuda:{index} is not there ({count} found); runtime.device=cpu always works")
        self._torch, self._index = torch, index
        self._peak_before = 0  # before a probe set the mark back
        self.name = self.torch_name = f"cuda:{index}"
        self.total = torch.cuda.get_device_properties(index).total_memory

    @classmethod
    def open(cls, argument: str) -> Self:
        if argument and not argument.isdigit():
            raise ConfigError("the number of a GPU follows the colon")
        return cls(int(argument or 0))

    @classmethod
    def all_names(cls) -> tuple[str, ...]:
        import torch

        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))

    @classmethod
    def may_be_here(cls) -> bool:
        return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()

    @classmethod
    def is_here(cls) -> bool:
        return cls.may_be_here() and _capability(0) is not None

    @classmethod
    def fastest_dtype(cls, argument: str) -> str:
        """Imports torch. A GPU that PyTorch cannot use leaves the CPU."""
        generation = _capability(int(argument or 0))
        if generation is None:
            return CpuDevice.fastest_dtype("")
        return "bfloat16" if generation >= _AMPERE else "float32"

    @classmethod
    def emulates_half(cls, *, chosen_by_auto: bool) -> bool:
        return chosen_by_auto and _capability(0) is None

    def current(self) -> AbstractContextManager[object]:
        return self._torch.cuda.device(self._index)

    def free(self) -> int:
        return self._torch.cuda.mem_get_info(self._index)[0]

    def allocated(self) -> int:
        return self._torch.cuda.memory_allocated(self._index)

    def reserved(self) -> int:
        return self._torch.cuda.memory_reserved(self._index)

    def peak(self) -> int:
        return max(self._peak_before, self._torch.cuda.max_memory_allocated(self._index))

    def measure(self, call: Callable[[], object]) -> int:
        self.synchronize()
        self._peak_before, before = self.peak(), self.allocated()
        self._torch.cuda.reset_peak_memory_stats(self._index)
        call()
        self.synchronize()
        return self._torch.cuda.max_memory_allocated(self._index) - before

    def limit(self, size: int) -> None:
        """A hard cap: PyTorch's allocator raises beyond it. The context and libraries' workspaces come on top."""
        self._torch.cuda.set_per_process_memory_fraction(min(1.0, size / self.total), self._index)

    def synchronize(self) -> None:
        self._torch.cuda.synchronize(self._index)

    def empty_cache(self) -> None:
        with self._torch.cuda.device(self._index):
            self._torch.cuda.empty_cache()


def _capability(index: int) -> tuple[int, int] | None:
    """The GPU's generation; None when PyTorch cannot use it."""
    import torch

    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else None
