"""How a pool lends: one frozen record. What each value may be by itself stands in `fgvr.config.groups`, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgvr.runtime.budget import as_bytes, parse_budget
from fgvr.runtime.devices.base import Device, held_by_others
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.policy import POLICIES, Policy, lru


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bytes and seconds."""

    budget: int
    asked: str | float | int | None = None  # how the budget was written (`auto`, a share): asked for the same again, a pool keeps its bytes
    policy: Policy = lru
    lease_timeout: float = 600.0
    max_concurrency: int | None = None  # batches that compute at once, over all models; None = one on each
    max_models: int | None = None
    reserve: int = 0
    host_budget: int = 0  # main memory for models that leave the device, so that they come back quickly; 0 = they go away
    preallocate: bool = False  # make that copy when a model is loaded, not when it first leaves
    ttl: float | None = None  # how long a model may be idle before it leaves the device; None = until its place is needed
    min_residency: float = 0.0  # how long a model stays for those who use it before others' need may evict it
    pin: tuple[str, ...] = ()  # models (roles or keys) that never yield
    priority: Mapping[str, int] = field(default_factory=dict)  # models of a higher level yield after all of lower ones
    allocator: Mapping[str, Any] = field(default_factory=dict)  # `runtime.allocator`; it cannot change once a model was loaded

    def __post_init__(self) -> None:
        if self.asked is None:
            object.__setattr__(self, "asked", self.budget)

    @classmethod
    def of(cls, runtime: Mapping[str, Any], device: Device, *, devices: int = 1) -> PoolSettings:
        """From the values of `configs/runtime/`, for one of so many `devices`. Raises ConfigError for a budget that is not understood."""
        budget = runtime["budget"]
        return cls(
            budget=parse_budget(budget, device.total, held=held_by_others(device) if budget == "auto" else 0),
            asked=budget,
            policy=POLICIES[runtime["policy"]],
            reserve=as_bytes(runtime["reserve"]),
            host_budget=_host_budget(runtime["host_budget"], device) // devices,
            ttl=runtime["ttl"] or None,
            pin=tuple(runtime["pin"] or ()),
            priority={role: level for role, level in (runtime["priority"] or {}).items() if level},
            allocator=runtime["allocator"],
            **{key: runtime[key] for key in ("lease_timeout", "max_concurrency", "max_models", "preallocate", "min_residency")},
        )


def _host_budget(written: str | int, device: Device) -> int:
    """Main memory for parked models. Only a device with memory of its own has use for it: elsewhere a second copy saves nothing."""
    if not device.has_own_memory:
        return 0
    return int(device.host_share * CpuDevice().total) if written == "auto" else as_bytes(written)
