"""The terms on which a pool lends, from the plain values of `configs/runtime/`: policy, tiers, times, pins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_bytes
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.policy import POLICIES, Policy
from fgvr.types import ROLES


@dataclass(frozen=True, slots=True)
class Terms:
    """Bytes and seconds; see `ModelPool` for what each means."""

    policy: Policy
    lease_timeout: float
    max_concurrency: int | None
    max_models: int | None
    reserve: int
    host_budget: int | None  # None = auto: depends on the device
    preallocate: bool
    scratch: str | None
    optimize: bool
    ttl: float | None
    min_residency: float
    pin: tuple[str, ...]
    priority: Mapping[str, int]

    def host_bytes(self, device: Device) -> int:
        """Main memory for parked models. Only a device with memory of its own has use for it: elsewhere a second copy saves nothing."""
        if not device.has_own_memory:
            return 0
        return int(device.host_share * CpuDevice().total) if self.host_budget is None else self.host_budget

    def scratch_folder(self, home: Path) -> Path | None:
        """Where the CPU leaves the weights of models that take turns."""
        return home / "scratch" if self.scratch == "auto" else Path(self.scratch).expanduser() if self.scratch else None


def terms(runtime: Mapping[str, Any]) -> Terms:
    """Raises ConfigError listing every key that is wrong, with what may stand there."""
    wrong: list[str] = []
    priority = dict(runtime["priority"] or {})
    for name, level in priority.items():
        if name not in ROLES or isinstance(level, bool) or not isinstance(level, int):
            wrong.append(f"runtime.priority.{name}={level}: write a whole number for one of {', '.join(ROLES)}")
    pins = runtime["pin"] or ()
    if isinstance(pins, str) or not all(name in ROLES for name in pins):
        wrong.append(f"runtime.pin={pins}: write a list of {', '.join(ROLES)}, such as [mllm]")
    if runtime["policy"] not in POLICIES:
        wrong.append(f"runtime.policy={runtime['policy']}: must be one of {', '.join(POLICIES)}")
    for switch in ("preallocate", "optimize"):
        if not isinstance(runtime[switch], bool):
            wrong.append(f"runtime.{switch}={runtime[switch]}: write true or false")
    if runtime["scratch"] is not None and not (isinstance(runtime["scratch"], str) and runtime["scratch"]):
        wrong.append(f"runtime.scratch={runtime['scratch']}: write auto, a folder, or null")
    found = Terms(
        policy=POLICIES.get(runtime["policy"], POLICIES["lru"]),
        lease_timeout=_seconds(runtime, "lease_timeout", wrong) or 0.0,
        max_concurrency=_count(runtime, "max_concurrency", wrong),
        max_models=_count(runtime, "max_models", wrong),
        reserve=_bytes(runtime, "reserve", wrong) or 0,
        host_budget=_bytes(runtime, "host_budget", wrong, auto=True),
        preallocate=runtime["preallocate"] is True,
        scratch=runtime["scratch"] if isinstance(runtime["scratch"], str) else None,
        optimize=runtime["optimize"] is True,
        ttl=_seconds(runtime, "ttl", wrong, optional=True) or None,
        min_residency=_seconds(runtime, "min_residency", wrong) or 0.0,
        pin=tuple(pins) if not isinstance(pins, str) else (),
        priority={name: level for name, level in priority.items() if level},
    )
    if wrong:
        raise ConfigError("; ".join(wrong))
    return found


def _seconds(runtime: Mapping[str, Any], key: str, wrong: list[str], *, optional: bool = False) -> float | None:
    value = runtime[key]
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        wrong.append(f"runtime.{key}={value}: write seconds, 0 or more" + (", or null" if optional else ""))
        return None
    return float(value)


def _count(runtime: Mapping[str, Any], key: str, wrong: list[str]) -> int | None:
    value = runtime[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        wrong.append(f"runtime.{key}={value}: write a whole number from 1 up, or null")
        return None
    return value


def _bytes(runtime: Mapping[str, Any], key: str, wrong: list[str], *, auto: bool = False) -> int | None:
    value = runtime[key]
    if auto and value == "auto":
        return None
    size = parse_bytes(value) if isinstance(value, str) else value
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        wrong.append(f"runtime.{key}={value}: write bytes, or a size such as 2GiB" + (", or auto" if auto else ""))
        return None
    return size
