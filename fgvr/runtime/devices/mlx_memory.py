"""MLX's allocator.

MLX has one allocator per process, in main memory: on Apple silicon that is the GPU's memory, too, elsewhere it is the CPU's. So an MLX
model and a PyTorch model share one memory and one ledger; `cpu` and `mps` therefore count and empty this allocator besides their own.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from fgvr.errors import ConfigError
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
