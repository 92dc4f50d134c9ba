"""The CPU: memory of the machine, or of the control group (container, batch job) when that is less; psutil alone does not honour it."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

import psutil

from fgvr.runtime.devices.base import is_oom

_CGROUP = Path("/sys/fs/cgroup")


class CpuDevice:
    """Main memory. It counts the whole process, not tensors, so the pool trusts its own ledger here."""

    name = "cpu"
    torch_name = "cpu"
    exact = False

    def __init__(self, *, cgroup: Path = _CGROUP) -> None:
        self._cgroup = cgroup
        self._process = psutil.Process()

    @property
    def total(self) -> int:
        physical = psutil.virtual_memory().total
        limit = self._cgroup_limit()
        return min(physical, limit) if limit else physical

    def free(self) -> int:
        available = psutil.virtual_memory().available
        limit = self._cgroup_limit()
        return min(available, max(0, limit - self._cgroup_used())) if limit else available

    def allocated(self) -> int:
        return self._process.memory_info().rss

    def reserved(self) -> int:
        return self.allocated()

    def peak(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def limit(self, size: int) -> None:
        """Nothing: a process-wide cap would also hit what is not ours."""

    def synchronize(self) -> None:
        """Nothing is queued."""

    def empty_cache(self) -> None:
        """glibc keeps freed pages until asked."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # another libc
                ctypes.CDLL("libc.so.6").malloc_trim(0)

    def is_oom(self, error: BaseException) -> bool:
        return is_oom(error)

    def _cgroup_limit(self) -> int | None:
        """Bytes, version 2 or 1; None = unlimited (version 1 says so with a huge number)."""
        for name in ("memory.max", "memory/memory.limit_in_bytes"):
            limit = self._read(name)
            if limit is not None and limit < 2**60:
                return limit
        return None

    def _cgroup_used(self) -> int:
        """Without the page cache that the kernel would give back."""
        for current, stat in (("memory.current", "memory.stat"), ("memory/memory.usage_in_bytes", "memory/memory.stat")):
            used = self._read(current)
            if used is not None:
                return max(0, used - self._inactive_file(stat))
        return 0

    def _inactive_file(self, stat: str) -> int:
        try:
            lines = (self._cgroup / stat).read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "total_inactive_file "))), 0)

    def _read(self, name: str) -> int | None:
        try:
            text = (self._cgroup / name).read_text().strip()
        except OSError:
            return None
        return int(text) if text.isdigit() else None
