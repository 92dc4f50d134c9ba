"""What this machine's processor can do, by its own word."""

from __future__ import annotations

import platform
from pathlib import Path

BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # of x86; each multiplies bfloat16 at a multiple of float32's rate
_CPUINFO = Path("/proc/cpuinfo")


def cpu_flags() -> set[str]:
    """The processor's instruction sets; none where the system does not tell (macOS, Windows)."""
    return {flag for line in _cpuinfo() if line.startswith("flags") for flag in line.partition(":")[2].split()}


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 has units of its own. Without them it is emulated, many times slower than float32."""
    return bool(cpu_flags() & set(BF16_FLAGS))


def is_amd() -> bool:
    """An AMD processor, or Hygon's of the same design."""
    makers = [line for line in _cpuinfo() if line.startswith("vendor_id")] or [platform.processor()]
    return any(name in maker for maker in makers for name in ("AuthenticAMD", "HygonGenuine"))


def _cpuinfo() -> list[str]:
    return _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
