"""The pool's books: which models, in which state, how many bytes. No threads, no devices: the pool holds its condition around every call.

Invariant: charges of all models + working memory of all leases + reserve + what did not come back <= limit.

    absent -> loading -> resident -> evicting -> absent          a lease keeps a model resident; so does a pin
        ^      ^   |                    `-> parked (host memory) -> loading, or absent when host memory is needed
        |      |   `-> failed (until retry_at) -> absent or parked
        `------'                                                 `drain_for`: resident, leased, and the head of the queue needs its place;
                                                                 shown as `draining`
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fgvr.errors import ConfigError, FgvrError
from fgvr.runtime.gc_tools import ErrorFrames
from fgvr.runtime.loaders.base import Loader, Movable
from fgvr.runtime.policy import choose
from fgvr.runtime.pool_settings import PoolSettings
from fgvr.types import ModelSpec, ModelStatus

State = Literal["absent", "loading", "resident", "parked", "evicting", "failed"]
STUCK_SECONDS = 5.0  # how long a model that could not be released is left alone
_NEWEST = 0.3  # weight of the newest gap between uses in their running mean


@dataclass(frozen=True, slots=True)
class LoadFailure:
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
    mover: object | None = None  # who brings it in or takes it out; nobody else may change its state meanwhile
    size: int = 0  # bytes of weights: estimated, then measured
    works: dict[int, int] = field(default_factory=dict)  # batch size -> bytes one batch needs; with the first of them, size is known
    offloaded: int = 0  # language layers that lie beside the device: decided before a load
    terms: tuple[object, ...] = ()  # under which that was decided
    charge: int = 0  # bytes on the device's ledger now
    host_charge: int = 0  # bytes in main memory now
    model: Any = None
    lent: tuple[int, ...] = ()  # batch size of each running lease: no batch may be larger than what all of them have memory for
    hits: int = 0
    loads: int = 0
    restores: int = 0
    since: float = 0.0  # resident since
    last_used: float = 0.0
    used_at: float | None = None  # the same in Unix seconds, of leases only; None = never lent
    last_holder: str = ""
    gap: float = 0.0
    load_seconds: float = 0.0
    restore_seconds: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)  # call -> largest batch that fits, learned when memory ran out
    fails: int = 0
    retry_at: float = 0.0
    failure: LoadFailure | None = None  # of the last load; the model stays failed until `retry_at`
    alert: str = ""
    stuck_until: float = 0.0  # it could not go because somebody still refers to the model; not tried again before
    drain_for: object | None = None
    frames: ErrorFrames = field(default_factory=ErrorFrames)  # of errors in its calls, for debuggers

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def at_rest(self) -> State:
        """What it is when it is neither on the device nor on its way."""
        return "failed" if self.failure else "parked" if self.model is not None else "absent"

    @property
    def movable(self) -> Movable | None:
        """How the model moves to main memory and back; None for one that cannot, or that is not there."""
        return getattr(self.model, "movable", None)

    @property
    def is_parked(self) -> bool:
        """Whether the model lies in main memory, and not on the device."""
        return (movable := self.movable) is not None and movable.parked

    @property
    def host_bytes(self) -> int:
        """What the model holds in main memory beside, or instead of, its place on the device."""
        return movable.host_nbytes if (movable := self.movable) is not None else 0

    @property
    def leases(self) -> int:
        return len(self.lent)

    @property
    def work(self) -> int:
        """Bytes one batch of the spec's size needs; 0 while nobody has asked."""
        return self.works.get(self.spec.batch_size, 0)

    @property
    def batch_size(self) -> int:
        """The least that a running lease was lent with: the spec may name another by now, which its working memory is not for."""
        return max(1, min(self.lent, default=self.spec.batch_size))

    def batch(self, call: str) -> int:
        """How many items go through at once."""
        size = self.batch_size
        return min(size, self.sizes.get(call, size))

    def lend(self, batch_size: int, now: float, holder: str) -> None:
        """A lease begins."""
        if self.last_holder:
            gap = now - self.last_used
            self.gap = gap if not self.gap else _NEWEST * gap + (1 - _NEWEST) * self.gap
        self.lent = (*self.lent, batch_size)
        self.last_used, self.last_holder, self.used_at = now, holder, time.time()

    def take_back(self, batch_size: int, now: float) -> None:
        """A lease ends."""
        left = list(self.lent)
        left.remove(batch_size)
        self.lent, self.last_used, self.used_at = tuple(left), now, time.time()


@dataclass(eq=False, slots=True)
class Request:
    """Models that a caller borrows: its ticket while it waits, its lease from the moment it is granted."""

    batches: Mapping[Entry, int]  # each model, and for batches of how many items
    work: int  # bytes of working memory for these batches
    holder: str
    own: tuple[Request, ...] = ()  # leases the caller already holds
    asked: float = field(default_factory=time.monotonic)
    stop: threading.Event | None = None  # set = whoever asks does not want it any more
    loaded: set[Entry] = field(default_factory=set)
    granted: float = 0.0  # by the monotonic clock, like `asked`; 0 = not yet

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self.batches)

    def __str__(self) -> str:
        return f"{'+'.join(e.key for e in self.batches)} by {self.holder}"


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is missing: bytes, and places when `max_models` is set."""

    bytes: int
    slots: int

    def __bool__(self) -> bool:
        return self.bytes > 0 or self.slots > 0


class Ledger:
    """Entries, aliases, pins and active leases, and the arithmetic over them."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.entries: dict[str, Entry] = {}
        self.aliases: dict[str, str] = {}  # role -> key
        self.pins = set(settings.pin)  # as given: a pin on a role follows the role
        self.priorities = dict(settings.priority)  # as given, likewise
        self.grants: set[Request] = set()  # running leases
        self.unreturned = 0  # bytes of evicted models that the device does not show as free
        self.peak = 0
        self.apply(settings)

    def apply(self, settings: PoolSettings) -> None:
        """Takes new settings. Pins and priorities that were set by hand stay, unless other ones than before are asked for."""
        before, self.settings = self.settings, settings
        self.limit, self.reserve, self.max_models, self.policy = settings.budget, settings.reserve, settings.max_models, settings.policy
        self.host_limit, self.min_residency, self.preallocate = settings.host_budget, settings.min_residency, settings.preallocate
        if (settings.pin, settings.priority) != (before.pin, before.priority):
            self.pins, self.priorities = set(settings.pin), dict(settings.priority)

    # --- who ---------------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Entry:
        """The entry of a role or key. Raises ConfigError with the known names."""
        entry = self.entries.get(self.aliases.get(name, name))
        if entry is None:
            known = ", ".join([*self.aliases, *self.entries]) or "none; register a ModelSpec or build a recognizer first"
            raise ConfigError(f"no model {name!r} in the pool; known are: {known}")
        return entry

    def held(self) -> list[tuple[str, float]]:
        """Running leases, as "models by thread", and since when each is held, by the monotonic clock."""
        return [(str(grant), grant.granted) for grant in self.grants]

    def pinned(self, entry: Entry) -> bool:
        return any(self.aliases.get(name, name) == entry.key for name in self.pins)

    def priority(self, entry: Entry) -> int:
        return max((level for name, level in self.priorities.items() if self.aliases.get(name, name) == entry.key), default=0)

    def idle(self, *, besides: Iterable[Entry] = (), now: float | None = None) -> list[Entry]:
        """Models that may be evicted now."""
        now, kept = time.monotonic() if now is None else now, set(besides)
        return [
            e
            for e in self.entries.values()
            if e.state == "resident" and not e.leases and not self.pinned(e) and e.stuck_until <= now and e not in kept
        ]

    def spared_seconds(self, entry: Entry, holder: str, now: float) -> float:
        """Seconds for which it must still be spared for others than who used it last, so that two users in turn do not thrash."""
        if not self.min_residency or entry.last_holder in ("", holder):
            return 0.0
        return max(0.0, entry.since + self.min_residency - now)

    def in_transition(self) -> bool:
        return any(e.state in ("loading", "evicting") for e in self.entries.values())

    # --- how much ----------------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of all models, leases and the reserve, and what did not come back."""
        total = self.reserve + self.unreturned
        for entry in self.entries.values():
            total += entry.charge
        for grant in self.grants:
            total += grant.work
        return total

    @property
    def host_used(self) -> int:
        return sum(e.host_charge for e in self.entries.values())

    def shortage(self, absent: Iterable[Entry], work: int) -> Shortage:
        """What must go before `absent` can be loaded and `work` bytes used beside what there is."""
        absent = list(absent)
        slots = self._places_taken + len(absent) - self.max_models if self.max_models is not None and absent else 0
        return Shortage(self.used + sum(e.size for e in absent) + work - self.limit, slots)

    def excess(self) -> tuple[Entry, ...]:
        """Whom of the idle to evict so that all is within the limits again, as after a lowered one or a size that was underestimated."""
        slots = self._places_taken - self.max_models if self.max_models is not None else 0
        return self.victims(self.idle(), Shortage(self.used - self.limit, slots))

    @property
    def _places_taken(self) -> int:
        return sum(e.state in ("loading", "resident", "evicting") for e in self.entries.values())

    def needed_together(self, entries: Iterable[Entry], own: Iterable[Request]) -> list[Entry]:
        """What has to be resident at once for this request: it, the holder's own leases, and what is pinned and there."""
        needed = dict.fromkeys(entries)
        needed.update(dict.fromkeys(e for g in own for e in g.entries))
        if self.pins:
            needed.update(dict.fromkeys(e for e in self.entries.values() if e.state in ("loading", "resident") and self.pinned(e)))
        return list(needed)

    def victims(self, idle: Sequence[Entry], short: Shortage) -> tuple[Entry, ...]:
        """The idle models to evict, by the policy."""
        now = time.monotonic()  # one for all: who is interrupted between two looks would see the later one as idle for longer
        return tuple(self.entries[key] for key in choose(self.policy, (self.status(e, now) for e in idle), short.bytes, short.slots))

    def unevictable(self) -> int:
        """Bytes that no eviction can free now."""
        idle = self.idle()
        return self.used - sum(e.charge for e in idle)

    def update_peak(self) -> None:
        """Call after every change that adds bytes."""
        self.peak = max(self.peak, self.used)

    def parked(self) -> list[Entry]:
        """What lies in main memory and may go, longest unused first; also when bringing it back failed."""
        now, there = time.monotonic(), ("parked", "failed")
        found = [e for e in self.entries.values() if e.state in there and e.model is not None and e.stuck_until <= now]
        return sorted(found, key=lambda e: e.last_used)

    def host_victims(self, size: int = 0, *, besides: Entry | None = None) -> list[Entry]:
        """Whose copies in main memory have to go so that `size` more bytes fit there; all there are when that is not enough."""
        chosen, short = [], self.host_used + size - self.host_limit
        for entry in self.parked():
            if short > 0 and entry.host_charge and entry is not besides:
                chosen.append(entry)
                short -= entry.host_charge
        return chosen

    # --- shown -------------------------------------------------------------------------------------------------------------

    def status(self, entry: Entry, now: float | None = None) -> ModelStatus:
        error = entry.failure.text if entry.failure else entry.alert
        now = time.monotonic() if now is None else now
        idle = now - entry.last_used if entry.last_used and not entry.leases else 0.0
        return ModelStatus(
            key=entry.key,
            role=entry.spec.role,
            source=entry.spec.source,
            state="draining" if entry.drain_for is not None and entry.leases and entry.state == "resident" else entry.state,
            bytes=entry.charge or entry.size,
            leases=entry.leases,
            hits=entry.hits,
            loads=entry.loads,
            pinned=self.pinned(entry),
            idle_seconds=idle,
            error=error,
            host_bytes=entry.host_charge,
            priority=self.priority(entry),
            return_seconds=entry.restore_seconds if entry.restores else entry.load_seconds,
            gap_seconds=entry.gap,
            working_sizes=tuple(entry.sizes.items()),
            last_used=entry.used_at,
        )
