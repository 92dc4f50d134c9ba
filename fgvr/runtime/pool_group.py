"""Several devices of one machine as one pool: a pool for each, one copy of a model on each, and every batch goes to the least busy one.

Batch borders are those of one pool, so answers do not depend on the device that computed them. A device on which a batch fails that
another device can compute is left out from then on, and that is said.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from fgvr.errors import FgvrError, ModelLoadError, OutOfBudget, RuntimeConflict
from fgvr.runtime import pool as pools
from fgvr.runtime.devices.base import Device
from fgvr.runtime.events import Listener
from fgvr.runtime.leased_models import BY_ROLE, Counters, Leased
from fgvr.runtime.loaders.base import Loader
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pool_settings import PoolSettings
from fgvr.runtime.status import PoolStatus
from fgvr.types import ROLES, MemoryPlan, ModelSpec, ModelStatus
from fgvr.utils.batches import longest_first, map_in_order, take

log = logging.getLogger(__name__)

R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., None])
_FURTHEST_FIRST = ("resident", "draining", "loading", "evicting", "parked", "failed", "absent")
_TRIES = 2  # devices that a batch may fail on; then the batch is to blame


def open_shared(devices: Sequence[Device], settings: Sequence[PoolSettings]) -> ModelPool:
    """The process's one pool, on these devices and with these settings, one per device.

    Raises RuntimeConflict where it lives on others, OutOfBudget when what is leased or pinned needs more than the new budget.
    """

    def create() -> ModelPool:
        made = [ModelPool(device, own) for device, own in zip(devices, settings, strict=True)]
        return made[0] if len(made) == 1 else PoolGroup(made)

    pool = pools.shared(create)
    if len(pool.members) != len(devices):
        there, asked = (", ".join(device.name for device in some) for some in ([one.device for one in pool.members], devices))
        raise RuntimeConflict(f"the shared pool lives on {there}; {asked} needs a new process")
    wanted = dict(zip(pool.members, zip(settings, devices, strict=True), strict=True))
    _change_all(pool.members, lambda member: member.configure(wanted[member][0], device=wanted[member][1]))
    return pool


def _change_all(pools: Sequence[ModelPool], change: Callable[[ModelPool], object]) -> None:
    """The settings of all of them or, where one refuses, of none."""
    before, done = [pool.settings for pool in pools], 0
    try:
        for pool in pools:
            change(pool)
            done += 1
    except FgvrError:
        for pool, former in zip(pools[:done], before, strict=False):
            pool.configure(former)
        raise


def _on_each(method: Method) -> Method:
    """A method of ModelPool, called on the pool of each device."""

    @wraps(method)
    def each(self: PoolGroup, *args: Any, **options: Any) -> None:
        for member in self.members:
            method(member, *args, **options)

    return cast(Method, each)


class PoolGroup(ModelPool):
    """The pools of several devices behind the surface of one. Settings, budgets too, are those of each device."""

    def __init__(self, members: Sequence[ModelPool]) -> None:
        self._members = tuple(members)
        self.device = self._members[0].device
        self.counters = Counters()
        for member in self._members:
            member.counters = self.counters
        self._lock = threading.Lock()
        self._running = dict.fromkeys(self._members, 0)  # batches and leases
        self._left_out: dict[tuple[ModelPool, str], str] = {}  # device and model (empty: every model) -> why

    @property
    def members(self) -> tuple[ModelPool, ...]:
        return self._members

    @property
    def notes(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(dict.fromkeys(self._left_out.values()))

    # --- models ------------------------------------------------------------------------------------------------------------

    def register(self, spec: ModelSpec) -> str:
        keys = [member.register(spec) for member in self._members]
        return keys[0]

    @contextmanager
    def lease(
        self, *models: str | ModelSpec, work: int | None = None, timeout: float | None = None, stop: threading.Event | None = None
    ) -> Iterator[Any]:
        """All of them on one device, the least busy one. `leased` spreads the batches of one call over all devices."""
        with self._least_busy(models) as member, member.lease(*models, work=work, timeout=timeout, stop=stop) as found:
            yield found

    def leased(self, spec: ModelSpec, *, timeout: float | None = None, stop: threading.Event | None = None) -> Any:
        self.register(spec)
        loader = self.loader(spec)
        spread = BY_ROLE[spec.role](spec, loader, execution=SpreadExecution(self, spec, timeout, stop))  # type: ignore[arg-type]
        return BY_ROLE[spec.role](spec, loader, lend=lambda _: nullcontext(spread))

    def compute(
        self, spec: ModelSpec, use: Callable[[Leased], R], *, timeout: float | None = None, stop: threading.Event | None = None
    ) -> R:
        """`use` with the model of the least busy device; once more with another's where that fails. Raises what the first try raised."""
        failures: dict[ModelPool, Exception] = {}
        while True:
            with self._least_busy([spec], but=failures) as member:
                try:
                    with member.lease(spec, timeout=timeout, stop=stop) as leased:
                        found = use(leased)
                except Exception as error:
                    if isinstance(error, FgvrError) and not isinstance(error, OutOfBudget | ModelLoadError):
                        raise
                    failures[member] = error
                    if len(failures) == min(_TRIES, len(failures) + len(self._usable([spec], failures))):
                        raise next(iter(failures.values())) from None
                else:
                    for failed, error in failures.items():
                        self._leave_out(failed, spec, error)
                    return found

    close, pin, unpin = _on_each(ModelPool.close), _on_each(ModelPool.pin), _on_each(ModelPool.unpin)
    refuse_other_allocator = _on_each(ModelPool.refuse_other_allocator)

    def evict(self, model: str, *, park: bool = False) -> int:
        """From every device. Raises RuntimeConflict where one of them is using it; from the others it is gone."""
        released, busy = 0, None
        for member in self._members:
            try:
                released += member.evict(model, park=park)
            except RuntimeConflict as error:
                busy = error
        if busy is not None:
            raise busy
        return released

    def cleanup(self) -> int:
        return sum(member.cleanup() for member in self._members)

    def reset(self, model: str) -> str:
        """Devices that it was left out on have it again."""
        known = {"", *(member.reset(model) for member in self._members)}
        with self._lock:
            self._left_out = {(member, key): why for (member, key), why in self._left_out.items() if key not in known}
        return max(known)

    def loader(self, spec: ModelSpec) -> Loader:
        return self._members[0].loader(spec)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        stops = [member.subscribe(listener) for member in self._members]

        def unsubscribe() -> None:
            for stop in stops:
                stop()

        return unsubscribe

    # --- figures -----------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> PoolSettings:
        return self._members[0].settings

    @property
    def budget(self) -> int:
        return sum(member.budget for member in self._members)

    def configure(self, settings: PoolSettings, *, device: Device | None = None) -> None:
        _change_all(self._members, lambda member: member.configure(settings, device=device))

    def set_budget(self, value: str | float | int) -> int:
        """Of each device; on all of them or, where OutOfBudget is raised, on none. Returns their sum."""
        _change_all(self._members, lambda member: member.set_budget(value))
        return self.budget

    def plan(self, *models: str | ModelSpec) -> MemoryPlan:
        """On the device that has least to spare."""
        return min((member.plan(*models) for member in self._members), key=lambda plan: plan.budget - plan.needed)

    def status(self) -> PoolStatus:
        each = tuple(member.status() for member in self._members)
        keys = dict.fromkeys(model.key for status in each for model in status)
        return PoolStatus(
            models=tuple(_merged([model for status in each for model in status if model.key == key]) for key in keys),
            device=", ".join(status.device for status in each),
            devices=each,
            **{name: sum(getattr(status, name) for status in each) for name in ("budget", "used", "peak", "host_used", "host_budget")},
        )

    def is_here(self, model: str | ModelSpec) -> bool:
        """On one of them."""
        return any(member.is_here(model) for member in self._members)

    def held(self) -> list[tuple[str, float]]:
        return [held for member in self._members for held in member.held()]

    @property
    def loads(self) -> Mapping[str, int]:
        each = [member.loads for member in self._members]
        return {role: sum(loads[role] for loads in each) for role in ROLES}

    @property
    def peak_bytes(self) -> int:
        """Of the device that had most in use."""
        return max(member.peak_bytes for member in self._members)

    # --- which device ------------------------------------------------------------------------------------------------------

    def _usable(self, models: Sequence[str | ModelSpec], but: Mapping[ModelPool, Exception]) -> list[ModelPool]:
        keys = {"", *(model if isinstance(model, str) else model.key for model in models)}
        return [member for member in self._members if member not in but and not any((member, key) in self._left_out for key in keys)]

    @contextmanager
    def _least_busy(self, models: Sequence[str | ModelSpec], but: Mapping[ModelPool, Exception] = {}) -> Iterator[ModelPool]:
        """Of the least busy, the first that has the models; where all are left out, any of those that were not tried. Busy until left."""
        with self._lock:
            usable = self._usable(models, but) or [member for member in self._members if member not in but]
            member = min(usable, key=lambda member: (self._running[member], not all(map(member.is_here, models))))
            self._running[member] += 1
        try:
            yield member
        finally:
            with self._lock:
                self._running[member] -= 1

    def _leave_out(self, member: ModelPool, spec: ModelSpec, error: Exception) -> None:
        """`error`: raised by a batch that another device has computed since."""
        of_model = isinstance(error, OutOfBudget | ModelLoadError)
        what = (
            f"{spec.role} {spec.source} is not used on {member.device.name}" if of_model else f"{member.device.name} is not used any more"
        )
        why = f"{what}, and the other devices go on without it: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        with self._lock:
            known = self._left_out.setdefault((member, spec.key if of_model else ""), why)
        if known is why:
            log.warning("%s", why)


class SpreadExecution:
    """What `Execution` is on one device: runs a call in batches, each on the device that is least busy when its turn comes."""

    def __init__(self, group: PoolGroup, spec: ModelSpec, timeout: float | None, stop: threading.Event | None) -> None:
        self._group, self._spec, self._timeout, self._stop = group, spec, timeout, stop
        self.counters = group.counters
        self._tokens = 0  # of one item, as the plan reckons

    @property
    def model(self) -> Any:
        raise FgvrError(f"{self._spec.key} has a copy on each device; lease one with `with pool.lease(...)`")

    def lengths(self, images: Sequence[Any], prompts: Sequence[str], system: str) -> Sequence[int]:
        def measure(leased: Leased) -> Sequence[int]:
            if found := leased.execution.lengths(images, prompts, system):
                self._tokens = leased.model.tokens_per_item
            return found

        return self._compute(measure)

    def run(
        self,
        method: str,
        columns: Sequence[Sequence[Any]],
        settings: Callable[[Sequence[int]], Mapping[str, Any]],
        *,
        sized: str,
        lengths: Sequence[int] = (),
    ) -> list[Any]:
        def compute(batch: Sequence[int]) -> list[Any]:
            part = [[column[i] for i in batch] for column in columns]
            own = [lengths[i] for i in batch] if lengths else ()
            return self._compute(
                lambda leased: leased.execution.run(
                    method, part, lambda inner: settings([batch[j] for j in inner]), sized=sized, lengths=own
                )
            )

        batches = self._batches(len(columns[0]), lengths)
        answers: dict[int, Any] = {}
        at_once = min(len(batches), len(self._group.members))
        for batch, found in zip(batches, map_in_order(compute, batches, at_once), strict=True):
            answers.update(zip(batch, found, strict=True))
        return [answers[i] for i in range(len(answers))]

    def _batches(self, count: int, lengths: Sequence[int]) -> list[Sequence[int]]:
        """With the borders that `Execution` would draw on one device."""
        most, batches, start = self._spec.batch_size, [], 0
        order = longest_first(lengths) if lengths else range(count)
        while start < count:
            stop = take(lengths, order, start, most, most * self._tokens) if lengths else min(count, start + most)
            batches.append(order[start:stop])
            start = stop
        return batches

    def _compute(self, use: Callable[[Leased], R]) -> R:
        return self._group.compute(self._spec, use, timeout=self._timeout, stop=self._stop)


def _merged(rows: Sequence[ModelStatus]) -> ModelStatus:
    """One row for the copies of a model: the state of the one that is furthest, and the sum of what was done with them."""
    furthest = min(rows, key=lambda row: _FURTHEST_FIRST.index(row.state))
    return replace(
        furthest,
        bytes=max(row.bytes for row in rows),
        pinned=any(row.pinned for row in rows),
        idle_seconds=min(row.idle_seconds for row in rows),
        last_used=max((row.last_used for row in rows if row.last_used is not None), default=None),
        error="; ".join(dict.fromkeys(row.error for row in rows if row.error)),
        **{name: sum(getattr(row, name) for row in rows) for name in ("leases", "hits", "loads", "host_bytes")},
    )
