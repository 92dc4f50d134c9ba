"""What all benchmarks share: repeated figures and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from fgvr.runtime.devices.cpu import BF16_FLAGS, cpu_flags

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = ("avx2", "avx512f", *BF16_FLAGS)


@dataclass(frozen=True, slots=True)
class Series:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Series:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return median(self.values)

    def summary(self) -> dict[str, Any]:
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "n": len(self.values)}

    def __format__(self, spec: str) -> str:
        """`f"{series:.3f}"`: median (min to max)."""
        return f"{format(self.median, spec)} ({format(min(self.values), spec)} to {format(max(self.values), spec)})"


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = cpu_flags()
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "load": os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "open_clip": version("open_clip_torch"),
        "commit": _commit(),
    }


def _commit() -> str:
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "no commit"
