"""The shared pool: one copy of each model, loaded when first used, lent inside a budget, evicted when others need the place.

Promises (each has a test): one copy per key; within the budget at every instant; a leased model is never moved; nothing hangs; a failure
leaves no trace. This file is the surface; the rules are in `admission`, the books in `ledger`, loading and
evicting in `lifecycle`, waiting in `leases`, calls of models in `leased_models`, out-of-memory in `recovery`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from fgvr.errors import ConfigError, OutOfBudget, RuntimeConflict
from fgvr.runtime.admission import Admission
from fgvr.runtime.allocator import changed
from fgvr.runtime.background import Background
from fgvr.runtime.budget import parse_budget
from fgvr.runtime.devices.base import Device, held_by_others
from fgvr.runtime.events import Events, Listener
from fgvr.runtime.execution_slots import ExecutionSlots
from fgvr.runtime.leased_models import BY_ROLE, Counters, Execution, Leased
from fgvr.runtime.leases import Lease, Leases
from fgvr.runtime.ledger import Entry, Ledger, Request
from fgvr.runtime.lifecycle import Lifecycle
from fgvr.runtime.loaders.base import Loader, find_loader
from fgvr.runtime.plan import Need, describe
from fgvr.runtime.pool_settings import PoolSettings
from fgvr.runtime.recovery import Recovery
from fgvr.runtime.sizing import Sizing
from fgvr.runtime.status import PoolStatus
from fgvr.types import ROLES, MemoryPlan, ModelSpec
from fgvr.utils.text import format_bytes


class ModelPool:
    """Models of one device within a budget. Making one loads nothing and touches no device."""

    def __init__(
        self, device: Device, settings: PoolSettings | None = None, *, loaders: Callable[[ModelSpec], Loader] = find_loader, **fields: Any
    ) -> None:
        """`fields`: those of `PoolSettings`, instead of a record of them."""
        settings = PoolSettings(**fields) if settings is None else settings
        self.device = device
        self.counters = Counters()
        self._loaders = loaders
        self._ledger = ledger = Ledger(settings)
        self._condition = condition = threading.Condition()
        self._admission = admission = Admission(ledger)
        self._events = events = Events(ledger)
        self._slots = ExecutionSlots(settings.max_concurrency, settings.lease_timeout)
        self._sizing = sizing = Sizing(condition, ledger, device)
        self._lifecycle = lifecycle = Lifecycle(condition, ledger, events, device, sizing)
        self._recovery = Recovery(condition, ledger, events, lifecycle, device)
        self._leases = Leases(condition, ledger, admission, lifecycle, events)
        self._housekeeping = Background(lifecycle.expire, "fgvr-housekeeping")

    @property
    def members(self) -> tuple[ModelPool, ...]:
        """The pool of each device: this one, unless it spans several (`pool_group`)."""
        return (self,)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a run's results must know of the devices, such as one that failed."""
        return ()

    # --- models ------------------------------------------------------------------------------------------------------------

    def register(self, spec: ModelSpec) -> str:
        """Make `spec.role` mean this model; returns its key. The model the role meant before stays until its place is needed.

        Raises ConfigError for an unknown loader, RuntimeConflict when only the dtype differs from a copy that is in use or resident.
        """
        with self._condition:
            before = self._ledger.entries.get(self._ledger.aliases.get(spec.role, ""))
            if before and before.state != "absent" and before.key != spec.key and replace(before.spec, dtype=spec.dtype).key == spec.key:
                had = before.spec.dtype
                raise RuntimeConflict(
                    f"{before.key} is loaded as {had}, asked for is {spec.dtype}; pool.evict({spec.role!r}) first, or restart"
                )
            entry = self._entry(spec)
            self._ledger.aliases[spec.role] = entry.key
            return entry.key

    def lease(
        self, *models: str | ModelSpec, work: int | None = None, timeout: float | None = None, stop: threading.Event | None = None
    ) -> AbstractContextManager[Any]:
        """Borrow one or several models (roles, keys or specs), all or none: `with pool.lease("encoder", "mllm") as (e, m)`.

        `work`: bytes of working memory beside the weights, by default what the loaders say a batch needs. `stop`: set it to end a wait.
        Entering raises OutOfBudget (can never fit; evicts nothing; carries the plan), WouldDeadlock (a nested lease that would wait for
        others), LeaseTimeout, ModelLoadError, ConfigError (unknown name).
        """
        if not models:
            raise ConfigError("pool.lease() needs at least one role, key or ModelSpec")
        seconds = self.settings.lease_timeout if timeout is None else timeout
        return Lease(lambda: self._acquire(models, work, seconds, stop), self._give_back)

    def leased(self, spec: ModelSpec, *, timeout: float | None = None, stop: threading.Event | None = None) -> Any:
        """A model of its role's protocol that takes a lease for each call. Registers the spec; loads nothing until the first call."""
        self.register(spec)
        return BY_ROLE[spec.role](spec, self._loaders(spec), lend=partial(self.lease, timeout=timeout, stop=stop))

    def pin(self, model: str) -> None:
        """Never evict it under pressure; a pin on a role follows the role."""
        with self._condition:
            self._ledger.find(model)
            self._ledger.pins.add(model)

    def unpin(self, model: str) -> None:
        """Take back every pin on this model."""
        with self._condition:
            key = self._ledger.find(model).key
            self._ledger.pins = {name for name in self._ledger.pins if self._ledger.aliases.get(name, name) != key}
            self._condition.notify_all()

    def evict(self, model: str, *, park: bool = False) -> int:
        """Drop one idle model, from main memory too; bytes that came back. `park`: rather keep it in main memory, if it can be.

        Raises RuntimeConflict while it is leased, pinned, loading or being evicted.
        """
        with self._condition:
            entry = self._ledger.find(model)
            if entry.state in ("absent", "failed", "parked") and (park or entry.model is None):
                return 0
            if entry.leases or entry.state in ("loading", "evicting") or self._ledger.pinned(entry):
                why = "leased" if entry.leases else entry.state if entry.mover else "pinned"
                raise RuntimeConflict(f"{entry.key} is {why} and cannot be evicted now")
            entry.state, entry.mover = "evicting", self
        return self._lifecycle.evict([entry], park=park)

    def cleanup(self) -> int:
        """Drop everything idle and unpinned, from main memory too, and empty the device's cache; bytes that came back to the device."""
        released = self._lifecycle.evict_idle(park=False)
        self._lifecycle.drop_parked()
        self.device.empty_cache()
        self._lifecycle.recheck_unreturned()
        return released

    def reset(self, model: str) -> str:
        """Forget a failed load at once instead of waiting for its back-off, and the batch sizes learned when memory ran out.

        Returns the model's key.
        """
        with self._condition:
            entry = self._ledger.find(model)
            entry.fails, entry.retry_at = 0, 0.0
            entry.sizes.clear()
            entry.failure = None
            if entry.state == "failed":
                entry.state = entry.at_rest
            return entry.key

    def close(self) -> None:
        """Refuse new leases and drop what is idle; what is leased goes when it comes back."""
        self._housekeeping.stop()
        with self._condition:
            self._ledger.pins.clear()
            self._condition.notify_all()
        self._lifecycle.close()

    def loader(self, spec: ModelSpec) -> Loader:
        """Who knows this model's files."""
        return self._loaders(spec)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Let `listener` hear every Event from now on, in order; call what is returned to stop. A listener that raises is dropped."""
        return self._events.subscribe(listener)

    # --- figures -----------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> PoolSettings:
        """As they apply now."""
        return self._ledger.settings

    @property
    def budget(self) -> int:
        return self._ledger.limit

    def configure(self, settings: PoolSettings, *, device: Device | None = None) -> None:
        """Change the settings live: all but `allocator`, once a model was loaded, and the device (`device`: the one asked for).

        Raises RuntimeConflict for these, OutOfBudget when what is leased or pinned needs more; then nothing has changed.
        """
        if device is not None and (self.device.name, self.device.total) != (device.name, device.total):
            raise RuntimeConflict(f"the shared pool lives on {self.device.name}; {device.name} needs a new process")
        self.refuse_other_allocator(settings.allocator)
        if settings.asked != self.settings.asked:  # `auto` would differ by what others hold just now
            self.set_budget(settings.budget)
        with self._condition:
            self._ledger.apply(replace(settings, budget=self._ledger.limit))
            self._condition.notify_all()
        self._slots.change(settings.max_concurrency, settings.lease_timeout)
        self._lifecycle.trim()
        self._lifecycle.trim_host()
        self._housekeeping.ring()

    def set_budget(self, value: str | float | int) -> int:
        """Change the budget live (forms: see parse_budget); idle models go until it holds. Returns bytes.

        Raises OutOfBudget with the plan, and changes nothing, when what is leased or pinned needs more.
        """
        limit = parse_budget(value, self.device.total, held=held_by_others(self.device) if value == "auto" else 0)
        with self._condition:
            kept = self._ledger.unevictable()
            if kept > limit:
                plan = self._admission.plan_of_kept(limit)
                raise OutOfBudget(f"{format_bytes(kept)} are leased, pinned or reserved, budget {format_bytes(limit)} asked\n{plan}", plan)
            if limit > self._ledger.limit:  # learned under a smaller one
                for entry in self._ledger.entries.values():
                    entry.sizes.clear()
            self._ledger.apply(replace(self.settings, budget=limit, asked=value))
            self._events.note("budget", bytes=limit, text=f"asked as {value}")
            self._condition.notify_all()
        self._lifecycle.trim()
        self._events.deliver()
        return limit

    def plan(self, *models: str | ModelSpec) -> MemoryPlan:
        """What these models (all roles when none is named) would need at once, against the budget. Loads nothing."""
        with self._condition:
            entries = [self._resolve(m) for m in models] or [self._ledger.find(role) for role in self._ledger.aliases]
            specs = {entry: entry.spec for entry in entries}
        works = self._sizing.measure(specs)
        needs = [Need(spec, entry.size, works[entry]) for entry, spec in specs.items()]
        return describe(needs, self._ledger.limit, reserve=self._ledger.reserve)

    def status(self) -> PoolStatus:
        """Every model the pool knows, in order of registration."""
        with self._condition:
            ledger, now = self._ledger, time.monotonic()
            models = tuple(ledger.status(e, now) for e in ledger.entries.values())
            return PoolStatus(models, self.device.name, ledger.limit, ledger.used, ledger.peak, ledger.host_used, ledger.host_limit)

    def is_here(self, model: str | ModelSpec) -> bool:
        """Whether its weights are on the device."""
        with self._condition:
            entry = self._ledger.entries.get(model.key) if isinstance(model, ModelSpec) else self._ledger.find(model)
            return entry is not None and entry.state == "resident"

    def held(self) -> list[tuple[str, float]]:
        """Running leases, as "models by thread", and since when each is held, by the monotonic clock."""
        with self._condition:
            return self._ledger.held()

    @property
    def loads(self) -> Mapping[str, int]:
        """Loads so far, by role."""
        with self._condition:
            return {role: sum(e.loads for e in self._ledger.entries.values() if e.spec.role == role) for role in ROLES}

    @property
    def peak_bytes(self) -> int:
        """The most that was in use: as the device measured it, else as the ledger had it."""
        return self.device.peak() if self.device.exact else self._ledger.peak

    def __repr__(self) -> str:
        return repr(self.status())

    def _repr_html_(self) -> str:
        return self.status().html

    # --- inside ------------------------------------------------------------------------------------------------------------

    def refuse_other_allocator(self, asked: Mapping[str, Any]) -> None:
        """Raises RuntimeConflict naming what these settings change for models that are, or were, in this process's memory."""
        with self._condition:
            lived = any(e.loads or e.state == "loading" for e in self._ledger.entries.values())
        if lived and (changes := changed(self.settings.allocator, asked)):
            raise RuntimeConflict(f"the shared pool has loaded models under other allocator settings; restart for {'; '.join(changes)}")

    def _entry(self, spec: ModelSpec) -> Entry:
        entry = self._ledger.entries.get(spec.key)
        if entry is None:
            entry = self._ledger.entries[spec.key] = Entry(spec, self._loaders(spec))
        entry.spec = spec  # the batch size may change; it is no part of the key, and running leases keep theirs
        return entry

    def _resolve(self, model: str | ModelSpec) -> Entry:
        return self._ledger.find(model) if isinstance(model, str) else self._entry(model)

    def _acquire(
        self, models: tuple[str | ModelSpec, ...], work: int | None, timeout: float, stop: threading.Event | None
    ) -> tuple[Request, list[Leased]]:
        began = time.monotonic()
        with self._condition:
            chosen = [self._resolve(m) for m in models]
            specs = {entry: entry.spec for entry in chosen}  # another thread may name another batch size from here on
        works = self._sizing.measure(specs)
        batches = {entry: spec.batch_size for entry, spec in specs.items()}
        needed = sum(works.values()) if work is None else work
        grant = self._leases.acquire(batches, needed, began, timeout, stop)
        lent = {entry: self._lent(entry) for entry in specs}
        return grant, [lent[entry] for entry in chosen]

    def _lent(self, entry: Entry) -> Leased:
        execution = Execution(entry, self.counters, self._recovery, self._slots, self.device)
        return BY_ROLE[entry.spec.role](entry.spec, entry.loader, execution=execution)

    def _give_back(self, grant: Request) -> None:
        self._leases.give_back(grant)
        if self.settings.ttl is not None and not self._housekeeping.started:  # now there is a model that may expire
            self._housekeeping.start()


# --- the one pool of the process ---------------------------------------------------------------------------------------------

_shared: ModelPool | None = None
_shared_lock = threading.Lock()


def shared(create: Callable[[], ModelPool] | None = None) -> ModelPool:
    """The process's one pool. `create` makes it when there is none; without it that is a ConfigError. See `configure` for new settings."""
    global _shared
    with _shared_lock:
        if _shared is None:
            if create is None:
                raise ConfigError("no shared pool yet; build a recognizer or call fgvr.shared_pool() with a config first")
            _shared = create()
        return _shared


def close_shared() -> None:
    """Close and forget the shared pool (tests, notebooks that change device)."""
    global _shared
    with _shared_lock:
        pool, _shared = _shared, None
    if pool is not None:
        pool.close()
