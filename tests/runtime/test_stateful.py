"""The pool against a reference that only knows sizes: any sequence of leases, evictions, pins, budgets and faults, one thread.

What this cannot see, by its nature, is a ticket taken too late or a lost wake-up; the storms are for those.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fgvr.errors import ModelLoadError, OutOfBudget, RuntimeConflict
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.leases import Lease
from fgvr.runtime.policy import POLICIES
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .helpers import Inside
from .storm import OutOfMemoryError

MIB = 1 << 20
SIZES = {"a": 40, "b": 30, "c": 20, "d": 10}
SPECS = {name: ModelSpec("mllm", "fake", f"{name} {size}MiB") for name, size in SIZES.items()}
NAMES = st.sampled_from(sorted(SIZES))


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.faults: list[BaseException] = []
        self.device = SimulatedDevice(100 * MIB)
        loader = FakeLoader(on_load=self.fault, on_move=lambda spec, way: self.fault(spec) if way == "restore" else None, movable=True)
        self.pool = ModelPool(
            self.device, budget=80 * MIB, host_budget=60 * MIB, lease_timeout=5, min_residency=0.0, loaders=lambda spec: loader
        )
        Inside(self.pool).housekeeping.stop()
        self.keys = {name: self.pool.register(spec) for name, spec in SPECS.items()}
        self.limit = 80
        self.open: list[tuple[Lease, frozenset[str], int]] = []
        self.pins: set[str] = set()

    def fault(self, spec: ModelSpec) -> None:
        if self.faults:
            raise self.faults.pop()

    def state(self, name: str) -> str:
        return next(m.state for m in self.pool.status() if m.key == self.keys[name])

    def together(self, names: frozenset[str]) -> int:
        """MiB that have to be there at once for these beside what is leased and what is pinned and there."""
        pinned = {n for n in self.pins if self.state(n) == "resident"}
        needed = names.union(*(models for _, models, _ in self.open), pinned)
        return sum(SIZES[n] for n in needed) + sum(work for _, _, work in self.open)

    @rule(names=st.frozensets(NAMES, min_size=1, max_size=3), work=st.integers(0, 20))
    def lease(self, names: frozenset[str], work: int) -> None:
        fits = self.together(names) + work <= self.limit
        before = [(m.key, m.state) for m in self.pool.status()]
        lease = self.pool.lease(*(self.keys[n] for n in sorted(names)), work=work * MIB)
        try:
            lease.__enter__()
        except OutOfBudget as error:
            if not fits:
                assert error.plan is not None and not error.plan.fits
                assert [(m.key, m.state) for m in self.pool.status()] == before, "a refusal evicts nothing"
            else:
                assert "ran out of memory" in str(error)
        except ModelLoadError as error:
            assert fits and "corrupt" in str(error)
        except KeyboardInterrupt:
            assert fits
        else:
            assert fits
            self.open.append((lease, names, work))
        for name in SIZES:
            self.pool.reset(self.keys[name])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        lease, _, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        lease.__exit__(None, None, None)

    @rule(name=NAMES, park=st.booleans())
    def evict(self, name: str, park: bool) -> None:
        leased = any(name in models for _, models, _ in self.open)
        was = self.state(name)
        try:
            self.pool.evict(self.keys[name], park=park)
        except RuntimeConflict:
            assert leased or name in self.pins
        else:
            assert not leased
            assert self.state(name) != "resident"
            if not park:
                assert self.state(name) == "absent"
            elif was == "parked":
                assert self.state(name) == "parked"

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        self.pool.pin(self.keys[name])
        self.pins.add(name)

    @rule(name=NAMES)
    def unpin(self, name: str) -> None:
        self.pool.unpin(self.keys[name])
        self.pins.discard(name)

    @rule(limit=st.sampled_from([60, 80, 100]))
    def budget(self, limit: int) -> None:
        kept = self.together(frozenset())
        try:
            self.pool.set_budget(limit * MIB)
        except OutOfBudget:
            assert kept > limit
        else:
            assert kept <= limit
            self.limit = limit

    @rule(policy=st.sampled_from(sorted(POLICIES)))
    def settings_(self, policy: str) -> None:
        self.pool.configure(replace(self.pool.settings, policy=POLICIES[policy]))

    @rule()
    def cleanup(self) -> None:
        self.pool.cleanup()
        for name in SIZES:
            leased = any(name in models for _, models, _ in self.open)
            assert leased or name in self.pins or self.state(name) == "absent"

    @rule(kind=st.sampled_from(["oom", "oom twice", "corrupt", "interrupt"]))
    def inject(self, kind: str) -> None:
        self.faults = {
            "oom": [OutOfMemoryError("out of memory")],
            "oom twice": [OutOfMemoryError("out of memory"), OutOfMemoryError("out of memory")],
            "corrupt": [ValueError("corrupt")],
            "interrupt": [KeyboardInterrupt()],
        }[kind]

    @invariant()
    def the_books_are_the_truth(self) -> None:
        ledger = Inside(self.pool).ledger
        work = sum(work for _, _, work in self.open) * MIB
        assert self.device.allocated() == ledger.used - work == sum(e.charge for e in ledger.entries.values())
        assert ledger.used <= self.limit * MIB
        assert max(self.device.peak(), ledger.peak) <= 100 * MIB
        assert ledger.host_used <= ledger.host_limit
        assert ledger.host_used == sum(e.model.movable.host_nbytes for e in ledger.entries.values() if e.model is not None)
        assert not Inside(self.pool).waiting
        assert ledger.unreturned == 0

    @invariant()
    def what_is_leased_is_there(self) -> None:
        counts = dict.fromkeys(SIZES, 0)
        for _, models, _ in self.open:
            for name in models:
                counts[name] += 1
                assert self.state(name) == "resident"
        assert {n: Inside(self.pool).ledger.entries[k].leases for n, k in self.keys.items()} == counts
        assert all(e.mover is None and e.drain_for is None for e in Inside(self.pool).ledger.entries.values())

    def teardown(self) -> None:
        while self.open:
            self.open.pop()[0].__exit__(None, None, None)
        self.pool.close()
        assert self.device.allocated() == 0


@pytest.fixture(autouse=True)
def quick_gc():
    gc.freeze()
    yield
    gc.unfreeze()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
