"""Apple's GPU through PyTorch. Unified memory: the GPU's bytes are the machine's, so there is no host tier to park models in.

MPS does not run out of memory, it swaps: by default PyTorch lets a process take 1.7 times what Metal recommends. The total here is the
recommended working set, and `limit` makes PyTorch refuse beyond the budget.
Written against PyTorch's documented functions and tested on a stand-in for `torch.mps`; it has not run on a Mac yet.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import psutil

from fgvr.errors import ConfigError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.mlx_memory import MLX, MlxAllocator


class MpsDevice(Device):
    """PyTorch's and MLX's arrays together: they lie in the same memory."""

    name = torch_name = allocator = "mps"
    exact = True

    def __init__(self, mps: Any = None, mlx: MlxAllocator = MLX) -> None:
        """`mps`: `torch.mps`, or what stands in for it in tests."""
        if mps is None:
            if not self.is_here():
                raise ConfigError(
                    "device mps is not there (it needs Apple silicon and a PyTorch built for it); runtime.device=cpu always works"
                )
            import torch

            mps = torch.mps
        self._mps, self._mlx = mps, mlx
        self.total = int(mps.recommended_max_memory())
        self._peak = 0

    @classmethod
    def may_be_here(cls) -> bool:
        return sys.platform == "darwin" and platform.machine() == "arm64"

    @classmethod
    def is_here(cls) -> bool:
        """Asks PyTorch only on Apple silicon."""
        if not cls.may_be_here():
            return False
        import torch

        return torch.backends.mps.is_available()

    def free(self) -> int:
        return max(0, min(psutil.virtual_memory().available, self.total - self.reserved()))

    def allocated(self) -> int:
        allocated = self._mps.current_allocated_memory() + self._mlx.active()
        self._peak = max(self._peak, allocated)
        return allocated

    def reserved(self) -> int:
        """Metal's own figure for the process should include MLX's buffers; the larger of both readings is safe either way."""
        return max(self._mps.driver_allocated_memory(), self.allocated() + self._mlx.cached())

    def peak(self) -> int:
        """The most that was seen when somebody asked: MPS keeps no high-water mark."""
        return max(self._peak, self.allocated())

    def limit(self, size: int) -> None:
        # A share of the recommended working set, as a float; 0 would mean no limit at all.
        self._mps.set_per_process_memory_fraction(float(min(1.0, max(size, 1) / self.total)))
        self._mlx.limit(size)

    def synchronize(self) -> None:
        self._mps.synchronize()
        self._mlx.synchronize()

    def empty_cache(self) -> None:
        self._mps.empty_cache()
        self._mlx.empty()
