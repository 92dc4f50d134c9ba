"""One NVIDIA GPU (or an AMD one under ROCm), through PyTorch's caching allocator."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from fgvr.errors import ConfigError
from fgvr.runtime.devices.base import HALF_AN_HOUR, is_oom


def cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()


class CudaDevice:
    """Counts tensors exactly; a hard cap makes the allocator itself refuse what would exceed the budget."""

    exact = True
    has_own_memory, parks_on_disk, host_share = True, False, 0.4  # of main memory: what may be pinned
    cleanup_seconds = HALF_AN_HOUR
    scratch: Path | None = None
    optimize = True

    def __init__(self, index: int = 0, torch: Any = None) -> None:
        """`torch`: what stands in for PyTorch in tests."""
        if torch is None:
            import torch
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise ConfigError(f"device cuda:{index} is not there ({count} found); runtime.device=cpu always works")
        self._torch = torch
        self._index = index
        self._total = torch.cuda.get_device_properties(index).total_memory

    @property
    def name(self) -> str:
        return f"cuda:{self._index}"

    @property
    def torch_name(self) -> str:
        return self.name

    @property
    def total(self) -> int:
        return self._total

    def free(self) -> int:
        return self._torch.cuda.mem_get_info(self._index)[0]

    def allocated(self) -> int:
        return self._torch.cuda.memory_allocated(self._index)

    def reserved(self) -> int:
        return self._torch.cuda.memory_reserved(self._index)

    def peak(self) -> int:
        return self._torch.cuda.max_memory_allocated(self._index)

    def limit(self, size: int) -> None:
        """A hard cap: PyTorch's allocator raises beyond it. The context and libraries' workspaces come on top."""
        self._torch.cuda.set_per_process_memory_fraction(min(1.0, size / self._total), self._index)

    def synchronize(self) -> None:
        self._torch.cuda.synchronize(self._index)

    def empty_cache(self) -> None:
        with self._torch.cuda.device(self._index):
            self._torch.cuda.empty_cache()

    def is_oom(self, error: BaseException) -> bool:
        if not is_oom(error):
            return False
        with contextlib.suppress(RuntimeError):
            self.synchronize()  # a queued asynchronous error would otherwise surface in somebody else's call
        return True
