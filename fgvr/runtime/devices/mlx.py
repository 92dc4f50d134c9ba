"""A device that counts MLX's arrays."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from fgvr.errors import ConfigError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.mlx_memory import INSTALL, MLX, MlxAllocator
from fgvr.runtime.devices.mps import MpsDevice


class MlxDevice(Device):
    """Unified memory as MLX counts it, with PyTorch's models beside it on `host` (mps, or cpu where there is no Metal).

    Exact for what MLX and MPS hold. On the CPU PyTorch's own tensors are seen by nobody; there they stand in the ledger only.
    """

    name = "mlx"
    exact = True
    torch_name = allocator = "mps" if sys.platform == "darwin" else "cpu"
    cleanup_seconds = 300.0  # MLX keeps freed arrays until asked

    def __init__(self, host: Device | None = None, mlx: MlxAllocator = MLX) -> None:
        """`host`: PyTorch's device in the same memory; None: this machine's."""
        if find_spec("mlx") is None:
            raise ConfigError(f"device mlx needs MLX: {INSTALL}; runtime.device=cpu always works")
        self._host, self._mlx = host or (MpsDevice() if MpsDevice.is_here() else CpuDevice()), mlx
        self.torch_name = self._host.torch_name
        # What that device says and does holds for MLX's arrays as well; if it counts tensors, it counts them, too.
        self.free, self.limit = self._host.free, self._host.limit
        self.synchronize, self.empty_cache = self._host.synchronize, self._host.empty_cache
        if self._host.exact:
            self.allocated, self.reserved, self.peak = self._host.allocated, self._host.reserved, self._host.peak

    @property
    def total(self) -> int:  # type: ignore[override]
        return self._host.total

    def allocated(self) -> int:
        return self._mlx.active()

    def reserved(self) -> int:
        return self._mlx.active() + self._mlx.cached()

    def peak(self) -> int:
        return self._mlx.peak()
