"""The pool's books: which models, in which state, how many bytes. No threads, no devices: the pool holds its condition around every call.

Invariant: charges of all models + working memory of all leases + reserve + what did not come back <= limit.

    absent -> loading -> resident -> evicting -> absent          a lease keeps a model resident; so does a pin
                 `-> failed (until retry_at) -> absent           `drain_for`: resident, leased, and the head of the queue needs its place
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Semaphore
from typing import Any, Literal

from fgvr.errors import ConfigError, FgvrError
from fgvr.runtime.loaders.base import Loader
from fgvr.types import ModelSpec, ModelStatus

State = Literal["absent", "loading", "resident", "parked", "evicting", "failed"]
ROLES = ("mllm", "encoder", "joint")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a load failed. The text only: the exception itself would keep the half-loaded tensors alive."""

    kind: type[FgvrError]
    text: str
    oom: bool = False


@dataclass(eq=False, slots=True)
class Entry:
    """One model. Mutable; guarded by the pool's condition, except `model`, which is stable while leased."""

    spec: ModelSpec
    loader: Loader
    state: State = "absent"
    sized: bool = False  # whether size and work are known
    size: int = 0  # bytes of weights: estimated, then measured
    work: int = 0  # bytes one batch needs
    charge: int = 0  # bytes on the ledger now
    model: Any = None
    face: Any = None  # what leases hand out; outlives the model
    leases: int = 0
    hits: int = 0
    loads: int = 0
    last_used: float = 0.0
    fails: int = 0
    retry_at: float = 0.0
    failure: Failure | None = None
    alert: str = ""
    stuck_until: float = 0.0  # eviction failed because somebody still refers to the model; not tried again before
    drain_for: object | None = None
    computing: Semaphore = field(default_factory=lambda: Semaphore(1))

    @property
    def key(self) -> str:
        return self.spec.key


@dataclass(eq=False, slots=True)
class Grant:
    """An active lease: what is borrowed, by whom, with how much working memory."""

    entries: tuple[Entry, ...]
    work: int
    holder: str
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is missing: bytes, and places when `max_models` is set."""

    bytes: int
    slots: int

    def __bool__(self) -> bool:
        return self.bytes > 0 or self.slots > 0


class Ledger:
    """Entries, aliases, pins and active leases, and the arithmetic over them."""

    def __init__(self, limit: int, reserve: int, max_models: int | None) -> None:
        self.limit, self.reserve, self.max_models = limit, reserve, max_models
        self.entries: dict[str, Entry] = {}
        self.aliases: dict[str, str] = {}  # role -> key
        self.pins: set[str] = set()  # as given: a pin on a role follows the role
        self.grants: set[Grant] = set()
        self.unreturned = 0  # bytes of evicted models that the device does not show as free
        self.peak = 0

    # --- who ---------------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Entry:
        """By role or key. Raises ConfigError with the known names."""
        entry = self.entries.get(self.aliases.get(name, name))
        if entry is None:
            known = ", ".join([*self.aliases, *self.entries]) or "none; register a ModelSpec or build a recognizer first"
            raise ConfigError(f"no model {name!r} in the pool; known are: {known}")
        return entry

    def pinned(self, entry: Entry) -> bool:
        return any(self.aliases.get(name, name) == entry.key for name in self.pins)

    def idle(self, *, besides: Iterable[Entry] = ()) -> list[Entry]:
        """What may be evicted now."""
        now, kept = time.monotonic(), set(besides)
        return [
            e
            for e in self.entries.values()
            if e.state == "resident" and not e.leases and not self.pinned(e) and e.stuck_until <= now and e not in kept
        ]

    def in_transition(self) -> bool:
        return any(e.state in ("loading", "evicting") for e in self.entries.values())

    # --- how much ----------------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes spoken for."""
        charges = sum(e.charge for e in self.entries.values())
        return charges + sum(g.work for g in self.grants) + self.reserve + self.unreturned

    def shortage(self, absent: Iterable[Entry], work: int) -> Shortage:
        """What must go before `absent` can be loaded and `work` bytes used beside what there is."""
        absent = list(absent)
        slots = 0
        if self.max_models is not None:
            present = sum(e.state in ("loading", "resident", "evicting") for e in self.entries.values())
            slots = present + len(absent) - self.max_models if absent else 0
        return Shortage(self.used + sum(e.size for e in absent) + work - self.limit, slots)

    def together(self, entries: Iterable[Entry], own: Iterable[Grant]) -> list[Entry]:
        """What has to be resident at once for this request: it, the holder's own leases, and what is pinned and there."""
        needed = dict.fromkeys(entries)
        needed.update(dict.fromkeys(e for g in own for e in g.entries))
        needed.update(dict.fromkeys(e for e in self.entries.values() if e.state in ("loading", "resident") and self.pinned(e)))
        return list(needed)

    def immovable(self) -> int:
        """Bytes that no eviction can free now."""
        idle = self.idle()
        return self.used - sum(e.charge for e in idle)

    def note(self) -> None:
        """Call after every change that adds bytes."""
        self.peak = max(self.peak, self.used)

    # --- shown -------------------------------------------------------------------------------------------------------------

    def status(self, entry: Entry) -> ModelStatus:
        error = entry.failure.text if entry.failure else entry.alert
        idle = time.monotonic() - entry.last_used if entry.last_used and not entry.leases else 0.0
        return ModelStatus(
            key=entry.key,
            role=entry.spec.role,
            source=entry.spec.source,
            state=entry.state,
            bytes=entry.charge or entry.size,
            leases=entry.leases,
            hits=entry.hits,
            loads=entry.loads,
            pinned=self.pinned(entry),
            idle_seconds=idle,
            error=error,
        )
