"""MLX's allocator, and a device that counts by it.

MLX has one allocator per process, in main memory: on Apple silicon that is the GPU's memory, too, elsewhere it is the CPU's. So an MLX
model and a PyTorch model share one memory and one ledger; `cpu` and `mps` therefore count and empty this allocator besides their own.
"""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgvr.errors import ConfigError
from fgvr.runtime.devices.base import Device, is_oom
from fgvr.utils.text import format_bytes

log = logging.getLogger(__name__)

INSTALL = "pip install 'fgvr[mlx]'"
_CACHE_SHARE, _CACHE_MOST = 8, 2 << 30  # freed buffers MLX may keep: limit / 8, at most 2 GiB; its own default is the whole limit


class MlxAllocator:
    """MLX's memory figures. Asking never imports MLX: a process that has not loaded an MLX model has none of its memory."""

    def __init__(self) -> None:
        self._limit: int | None = None

    def begin(self) -> Any:
        """`mlx.core`, imported, within the limit set so far. Raises ConfigError when it is not installed."""
        try:
            import mlx.core as core
        except ImportError as error:
            raise ConfigError(f"MLX is not installed ({error}); {INSTALL}") from error
        if self._limit is not None:
            self.limit(self._limit)
        return core

    @property
    def core(self) -> Any | None:
        """`mlx.core` when this process uses it."""
        return sys.modules.get("mlx.core")

    def active(self) -> int:
        """Bytes of live arrays."""
        return self.core.get_active_memory() if self.core else 0

    def cached(self) -> int:
        """Bytes of freed arrays that MLX keeps for the next ones."""
        return self.core.get_cache_memory() if self.core else 0

    def peak(self) -> int:
        """The most `active` has been."""
        return self.core.get_peak_memory() if self.core else 0

    def limit(self, size: int) -> None:
        """Remembered until MLX is in use. MLX treats it as a guideline: above it it frees its cache and waits, and refuses only what the
        machine has not got."""
        self._limit = size
        if self.core:
            self.core.set_memory_limit(size)
            self.core.set_cache_limit(min(size // _CACHE_SHARE, _CACHE_MOST))
            if self.core.metal.is_available():
                # Once for the process; mlx-vlm does it around each generation, and two that overlap restore each other's value.
                self.core.set_wired_limit(min(size, self.core.device_info()["max_recommended_working_set_size"]))

    def synchronize(self) -> None:
        if self.core:
            self.core.synchronize()

    def empty(self) -> int:
        """Give what is freed back to the machine; bytes."""
        if not self.core or not (cached := self.cached()):
            return 0
        before = self.active() + cached
        self.core.clear_cache()
        after = self.active() + self.cached()
        log.info("mlx: %s before, %s after, %s released", format_bytes(before), format_bytes(after), format_bytes(before - after))
        return before - after


MLX = MlxAllocator()


class MlxDevice:
    """Unified memory as MLX counts it, with PyTorch's models beside it on `host` (mps, or cpu where there is no Metal).

    Exact for what MLX and MPS hold. On the CPU PyTorch's own tensors are seen by nobody; there they stand in the ledger only.
    """

    name = "mlx"
    exact = True
    has_own_memory, parks_on_disk, host_share = False, False, 0.0
    cleanup_seconds = 300.0  # MLX keeps freed arrays until asked
    scratch: Path | None = None
    optimize = True

    def __init__(self, host: Device, mlx: MlxAllocator = MLX) -> None:
        if find_spec("mlx") is None:
            raise ConfigError(f"device mlx needs MLX: {INSTALL}; runtime.device=cpu always works")
        self._host, self._mlx = host, mlx

    @property
    def torch_name(self) -> str:
        return self._host.torch_name

    @property
    def total(self) -> int:
        return self._host.total

    def free(self) -> int:
        return self._host.free()

    def allocated(self) -> int:
        return self._host.allocated() if self._host.exact else self._mlx.active()

    def reserved(self) -> int:
        return self._host.reserved() if self._host.exact else self._mlx.active() + self._mlx.cached()

    def peak(self) -> int:
        return self._host.peak() if self._host.exact else self._mlx.peak()

    def limit(self, size: int) -> None:
        self._host.limit(size)

    def synchronize(self) -> None:
        self._host.synchronize()

    def empty_cache(self) -> None:
        self._host.empty_cache()

    def is_oom(self, error: BaseException) -> bool:
        return is_oom(error)
