"""The CPU: memory of the machine, or of the control group (container, batch job) when that is less."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cgroup import Allowance, allowance
from fgvr.runtime.devices.live_tensors import peak_of_tensors
from fgvr.runtime.devices.mlx_memory import MLX

BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # of x86; each multiplies bfloat16 at a multiple of float32's rate
_CPUINFO = Path("/proc/cpuinfo")
_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class CpuDevice(Device):
    """Main memory without swap. It counts the whole process, not tensors, so the pool trusts its own ledger here."""

    name = allocator = "cpu"
    quantizes = True
    offload_place, offload_rate = "disk", 1e9  # a fast disk

    def __init__(self, *, cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> None:
        self._cgroup, self._membership = cgroup, membership
        self._process = psutil.Process()

    @classmethod
    def fastest_dtype(cls, argument: str) -> str:
        """bfloat16 where it has units of its own; without them it is emulated, many times slower than float32."""
        return "bfloat16" if cpu_flags() & set(BF16_FLAGS) else "float32"

    @classmethod
    def emulates_half(cls, *, chosen_by_auto: bool) -> bool:
        return True  # every processor

    @property
    def total(self) -> int:  # type: ignore[override]
        physical = psutil.virtual_memory().total
        group = self._allowance()
        return min(physical, group.limit) if group else physical

    def free(self) -> int:
        available = psutil.virtual_memory().available
        group = self._allowance()
        return min(available, group.free) if group else available

    def allocated(self) -> int:
        """What would come back if this process ended (unique set size): pages shared with others are not ours alone."""
        return self._process.memory_full_info().uss

    def peak(self) -> int:
        """The most that was resident, shared pages included: the kernel keeps no other high-water mark."""
        if sys.platform == "win32":  # which has no such module
            return self._process.memory_info().peak_wset
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def measure(self, call: Callable[[], object]) -> int:
        """Tensors; what makes none (MLX, other libraries) is looked at from outside, called once more for it."""
        return peak_of_tensors(call) or super().measure(call)

    def limit(self, size: int) -> None:
        """MLX's guideline only: a cap on the process would also hit what is not ours."""
        MLX.limit(size)

    def synchronize(self) -> None:
        MLX.synchronize()

    def empty_cache(self) -> None:
        """MLX keeps freed arrays, glibc freed pages, until asked."""
        MLX.empty()
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # another libc
                ctypes.CDLL("libc.so.6").malloc_trim(0)

    def _allowance(self) -> Allowance | None:
        return allowance(self._cgroup, self._membership)


# --- what the processor can do, by its own word ----------------------------------------------------------------------------------


def cpu_flags() -> set[str]:
    """The processor's instruction sets; none where the system does not tell (macOS, Windows)."""
    return {flag for line in _cpuinfo() if line.startswith("flags") for flag in line.partition(":")[2].split()}


def is_amd() -> bool:
    """An AMD processor, or Hygon's of the same design."""
    makers = [line for line in _cpuinfo() if line.startswith("vendor_id")] or [platform.processor()]
    return any(name in maker for maker in makers for name in ("AuthenticAMD", "HygonGenuine"))


def _cpuinfo() -> list[str]:
    return _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
