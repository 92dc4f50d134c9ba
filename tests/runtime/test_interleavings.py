"""Two threads at the worst moment, made by hand: a gate holds the one inside a load or a move while the other does its part."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from fgvr.errors import FgvrError, OutOfBudget, RuntimeConflict
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, MIB, MLLM, PoolMaker
from .helpers import PICTURE, Gate, Inside, state, until, used


class MoveGate(Gate):
    """Holds the moves of one kind."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def __call__(self, spec: ModelSpec, way: str = "") -> None:
        if way == self.way:
            super().__call__(spec)


def use(pool: ModelPool, name: str = "mllm") -> str:
    with pool.lease(name) as model:
        return str(model.generate([PICTURE], ["look"])[0]) if name == "mllm" else ""


def waits(future: Future) -> bool:
    """Still under way after what it could do has been done."""
    return not until(future.done, seconds=0.1)


def test_a_lease_that_comes_while_its_model_is_parked_waits_and_brings_it_back(make_pool: PoolMaker) -> None:
    gate = MoveGate("park")
    pool = make_pool(host_budget=60 * MIB, loader=FakeLoader(movable=True, on_move=gate))
    right = use(pool)
    with ThreadPoolExecutor(2) as threads:
        parking = threads.submit(lambda: pool.evict("mllm", park=True))
        assert gate.entered.wait(10)
        leasing = threads.submit(use, pool)
        assert waits(leasing) and state(pool, MLLM) == "evicting"
        assert used(pool) == 40 * MIB  # charged until it is gone
        gate.open.set()
        assert parking.result(10) == 40 * MIB
        assert leasing.result(10) == right
    assert pool.loads["mllm"] == 1


def test_a_lease_that_comes_when_the_ttl_has_struck_gets_the_model_again(make_pool: PoolMaker) -> None:
    gate = MoveGate("park")
    pool = make_pool(ttl=0.02, host_budget=60 * MIB, loader=FakeLoader(movable=True, on_move=gate))
    right = use(pool)
    assert gate.entered.wait(10)  # housekeeping is at it
    pool.configure(replace(pool.settings, ttl=None))  # and will not come again, however slow this machine is
    with ThreadPoolExecutor(1) as threads:
        leasing = threads.submit(use, pool)
        assert waits(leasing)
        gate.open.set()
        assert leasing.result(10) == right
    assert pool.loads["mllm"] == 1


def test_what_is_loading_or_moving_cannot_be_evicted_by_hand(make_pool: PoolMaker) -> None:
    gate = Gate()
    pool = make_pool(loader=FakeLoader(on_load=gate))
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(use, pool)
        assert gate.entered.wait(10)
        with pytest.raises(RuntimeConflict, match="is loading"):
            pool.evict("mllm")
        assert pool.cleanup() == 0
        assert used(pool) == 40 * MIB
        gate.open.set()
        assert loading.result(10)


def test_a_place_that_is_just_becoming_free_is_not_given_twice(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    """Room for one: while the first waiter evicts for itself, the second may not count the same bytes."""
    gate = MoveGate("park")
    pool = make_pool(budget=45 * MIB, host_budget=200 * MIB, loader=FakeLoader(work=MIB, movable=True, on_move=gate))
    use(pool)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(use, pool, "encoder")
        assert gate.entered.wait(10)
        second = threads.submit(use, pool, "joint")
        assert waits(second) and waits(first)
        gate.open.set()
        first.result(10)
        second.result(10)
    assert device.peak() <= 45 * MIB


def test_a_pool_closed_during_a_load_keeps_nothing(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    gate = Gate()
    pool = make_pool(loader=FakeLoader(on_load=gate))
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(use, pool)
        assert gate.entered.wait(10)
        pool.close()
        gate.open.set()
        with pytest.raises(FgvrError, match="closed"):
            loading.result(10)
    assert (device.allocated(), used(pool), state(pool, MLLM)) == (0, 0, "absent")


def test_a_smaller_budget_during_a_load_counts_what_is_reserved(make_pool: PoolMaker) -> None:
    gate = Gate()
    pool = make_pool(loader=FakeLoader(on_load=gate))
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(use, pool)
        assert gate.entered.wait(10)
        with pytest.raises(OutOfBudget, match="reserved"):
            pool.set_budget("30MiB")
        assert pool.set_budget("45MiB") == 45 * MIB
        gate.open.set()
        assert loading.result(10)


def test_a_draining_model_is_not_lent_to_newcomers_but_to_who_holds_leases(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=75 * MIB)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> int:
        with pool.lease("mllm"):
            inside.set()
            assert leave.wait(10)
            with pool.lease("mllm"):  # a nested lease of what drains is served
                return 1

    with ThreadPoolExecutor(3) as threads:
        holder = threads.submit(hold)
        assert inside.wait(10)
        head = threads.submit(use, pool, _big(pool))
        assert until(lambda: Inside(pool).waiting == 1)
        newcomer = threads.submit(use, pool)
        assert waits(newcomer) and waits(head)
        assert Inside(pool).waiting == 2
        leave.set()
        assert holder.result(10) == 1
        head.result(10)
        assert newcomer.result(10)
    assert pool.loads["mllm"] == 3  # first, big, and the first again: the newcomer did not keep it from leaving


def _big(pool: ModelPool) -> str:
    """A model that needs the whole budget; the role goes on meaning the old one."""
    key = pool.register(ModelSpec("mllm", "fake", "big 70MiB"))
    pool.register(MLLM)
    return key


def test_an_eviction_of_several_that_is_interrupted_gives_the_rest_back(make_pool: PoolMaker) -> None:
    hit = [KeyboardInterrupt()]

    def interrupt(spec: ModelSpec, way: str) -> None:
        if hit:
            raise hit.pop()

    pool = make_pool(host_budget=200 * MIB, loader=FakeLoader(movable=True, on_move=interrupt))
    with pool.lease("mllm", "encoder"):
        pass
    with pytest.raises(KeyboardInterrupt), pool.lease(ModelSpec("joint", "fake", "all 95MiB")):
        pass
    assert (state(pool, MLLM), state(pool, ENCODER)) == ("resident", "resident")
    assert all(e.mover is None for e in Inside(pool).ledger.entries.values())
    with pool.lease(ModelSpec("joint", "fake", "all 95MiB")):
        pass
