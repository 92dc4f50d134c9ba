"""`dtype=fastest`: bfloat16 where the processor multiplies it, float32 where it would be emulated (there it is many times slower).

float16 is emulated on every CPU."""

from __future__ import annotations

import platform
from pathlib import Path

from fgvr.runtime.devices import kind_of

BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # of x86; each multiplies bfloat16 at a multiple of float32's rate
_AMPERE = (8, 0)  # the first NVIDIA generation with bfloat16 units
_CPUINFO = Path("/proc/cpuinfo")


def fastest(device: str) -> str:
    """`bfloat16` or `float32` for a device as `runtime.device` names it. Imports torch only for a CUDA device."""
    kind = kind_of(device)
    if kind == "cuda" and (generation := _capability(int(device.partition(":")[2] or 0))):
        return "bfloat16" if generation >= _AMPERE else "float32"
    return "bfloat16" if kind in ("cpu", "cuda") and cpu_flags() & set(BF16_FLAGS) else "float32"


def emulates_half(device: str) -> bool:
    """Whether float16 has no units on a device as `runtime.device` names it. Imports torch only for `auto` on a machine with a GPU."""
    kind = kind_of(device)
    return kind in ("cpu", "simulated") or (kind == "cuda" and device == "auto" and _capability(0) is None)


def cpu_flags() -> set[str]:
    """What the processor says it has; nothing where the system does not tell (macOS, Windows)."""
    return {flag for line in _cpuinfo() if line.startswith("flags") for flag in line.partition(":")[2].split()}


def is_amd() -> bool:
    """An AMD processor, or Hygon's of the same design."""
    makers = [line for line in _cpuinfo() if line.startswith("vendor_id")] or [platform.processor()]
    return any(name in maker for maker in makers for name in ("AuthenticAMD", "HygonGenuine"))


def _cpuinfo() -> list[str]:
    return _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []


def _capability(index: int) -> tuple[int, int] | None:
    """None: a GPU that PyTorch cannot use; `auto` then means the CPU."""
    import torch

    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else None
