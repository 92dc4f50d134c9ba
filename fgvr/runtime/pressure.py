"""How full is the budget, how full is the machine, and what would go first. Pure functions of snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from fgvr.errors import ConfigError
from fgvr.runtime.budget import as_bytes
from fgvr.runtime.devices.base import HALF_AN_HOUR
from fgvr.runtime.policy import Policy, choose
from fgvr.utils.text import format_bytes

if TYPE_CHECKING:
    from fgvr.runtime.machine import Host
    from fgvr.runtime.status import PoolStatus
    from fgvr.types import ModelStatus

Level = Literal["ok", "low", "high", "critical"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Shares of the limit. A level begins at its mark and ends `margin` below it, so that a value at a mark does not flap."""

    low: float = 0.80
    high: float = 0.90
    critical: float = 0.97
    margin: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.margin < self.low < self.high < self.critical <= 1):
            raise ConfigError(
                f"runtime.watermarks {self.low:g}, {self.high:g}, {self.critical:g} (margin {self.margin:g}): "
                "write shares with 0 < margin < low < high < critical <= 1"
            )

    def level(self, share: float, before: Level = "ok") -> Level:
        """Of `share` of the limit in use, after `before`."""
        held = min(self._reached(share + self.margin), LEVELS.index(before))
        return LEVELS[max(self._reached(share), held)]

    def _reached(self, share: float) -> int:
        return sum(share >= mark for mark in (self.low, self.high, self.critical))


@dataclass(frozen=True, slots=True)
class HostMarks:
    """The machine is low on memory below `free` bytes, or above `used`, a share of its total."""

    free: int = 2 << 30
    used: float = 0.85
    margin: float = 0.05

    def why_low(self, host: Host, *, before: bool = False) -> str:
        """In words, or "" when it is not; once low, it has to get better by `margin` of the total."""
        slack = self.margin if before else 0.0
        if host.free < self.free + slack * host.total:
            return f"{format_bytes(host.free)} of main memory free, less than {format_bytes(self.free)}"
        if host.used_share > self.used - slack:
            return f"{host.used_share:.0%} of main memory used, more than {self.used:.0%}"
        return ""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """How a pool is watched; seconds and bytes."""

    check_interval: float = 60.0
    sample_gap: float = 1.0  # frequent events are followed by a sample at most this often; loads and evictions always
    watermarks: Watermarks = field(default_factory=Watermarks)
    host_low: HostMarks = field(default_factory=HostMarks)
    auto_cleanup: bool = True
    cleanup_idle: float = 30.0  # automatic clean-up leaves alone what was used more recently
    cleanup_interval: float | None = 1800.0
    lease_seconds: float = 600.0  # a lease held longer is worth an alert

    @classmethod
    def of(cls, runtime: Mapping[str, Any], *, cleanup_seconds: float = HALF_AN_HOUR) -> MonitorSettings:
        """From the values of `configs/runtime/`. Raises ConfigError for marks that contradict each other."""
        every, host = runtime["cleanup_interval"], runtime["host_low"]
        return cls(
            watermarks=Watermarks(**runtime["watermarks"]),
            host_low=HostMarks(free=as_bytes(host["free"]), used=host["used"]),
            cleanup_interval=(cleanup_seconds if every == "auto" else every) or None,
            lease_seconds=runtime["alerts"]["lease_seconds"],
            **{key: runtime[key] for key in ("check_interval", "auto_cleanup", "cleanup_idle")},
        )


@dataclass(frozen=True, slots=True)
class Pressure:
    """`memory/pressure`: whether memory is short. `recommended`: idle models in the order in which they would go."""

    pressure: bool
    level: Level
    share: float
    used: int
    limit: int
    host_low: str
    recommended: tuple[str, ...]


def pressure(
    status: PoolStatus, policy: Policy, marks: Watermarks, *, host_low: str = "", before: Level = "ok", allocated: int = 0
) -> Pressure:
    """Judge a snapshot. `allocated`: what the device itself counts, where it counts tensors; it matters when it is more than the ledger."""
    used = max(status.used, allocated)
    share = used / status.budget if status.budget else 1.0
    level = marks.level(share, before)
    recommended: tuple[str, ...] = ()
    if level != "ok" or host_low:
        excess = status.used if host_low else used - int((marks.low - marks.margin) * status.budget)
        recommended = choose(policy, idle_models(status.models), excess)
    return Pressure(level in ("high", "critical") or bool(host_low), level, round(share, 4), used, status.budget, host_low, recommended)


def idle_models(models: Sequence[ModelStatus], *, least: float = 0.0) -> list[ModelStatus]:
    """Resident, unleased, unpinned, and unused for `least` seconds."""
    return [m for m in models if m.here and not m.leases and not m.pinned and m.idle_seconds >= least]
