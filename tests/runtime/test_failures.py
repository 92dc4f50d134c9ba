"""Promise 5, failure leaves no trace: loads that fail, memory that runs out while loading, interrupts."""

from __future__ import annotations

import pytest

from fgvr.errors import ModelLoadError, OutOfBudget
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, JOINT, MIB, MLLM, PoolMaker
from .helpers import state, used


def test_a_failed_load_leaves_no_bytes_and_backs_off(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    attempts = []

    def fail(spec: ModelSpec) -> None:
        attempts.append(device.allocate(10 * MIB))
        ballast = device.allocate(20 * MIB)
        raise ValueError(f"corrupt {ballast.nbytes}")

    pool = make_pool(loader=FakeLoader(on_load=fail))
    for _ in range(3):
        with pytest.raises(ModelLoadError, match="ValueError: corrupt"), pool.lease("mllm"):
            pass
    assert len(attempts) == 1  # the others were told at once
    attempts.clear()
    assert device.allocated() == 0
    assert used(pool) == 0
    assert state(pool, MLLM) == "failed"
    pool.reset("mllm")
    with pytest.raises(ModelLoadError), pool.lease("mllm"):
        pass
    assert len(attempts) == 1
    attempts.clear()


def test_running_out_of_memory_while_loading_evicts_all_idle_and_tries_once_more(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    def peak(spec: ModelSpec) -> None:
        if spec.role == "mllm":
            device.allocate(60 * MIB)  # for a moment more than the loader said, and too much beside the others

    pool = make_pool(loader=FakeLoader(on_load=peak, work=0))
    with pool.lease("encoder"), pool.lease("joint"):
        pass
    with pool.lease("mllm"):
        pass
    assert [state(pool, s) for s in (MLLM, ENCODER, JOINT)] == ["resident", "absent", "absent"]
    assert pool.loads["mllm"] == 1


def test_running_out_of_memory_twice_is_a_clear_error_with_the_plan(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    tries = []

    def exhaust(spec: ModelSpec) -> None:
        tries.append(spec)
        ballast = device.allocate(30 * MIB)
        device.allocate(2000 * MIB)
        del ballast

    pool = make_pool(loader=FakeLoader(on_load=exhaust))
    with pytest.raises(OutOfBudget, match="ran out of memory") as caught, pool.lease("mllm"):
        pass
    assert len(tries) == 2
    assert caught.value.plan is not None
    assert device.allocated() == 0
    assert used(pool) == 0


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_load_can_be_done_again(make_pool: PoolMaker, interrupt: type[BaseException]) -> None:
    once = [interrupt()]

    def stop(spec: ModelSpec) -> None:
        if once:
            raise once.pop()

    pool = make_pool(loader=FakeLoader(on_load=stop))
    with pytest.raises(interrupt), pool.lease("mllm"):
        pass
    assert state(pool, MLLM) == "absent"
    assert used(pool) == 0
    with pool.lease("mllm"):
        pass


def test_an_error_in_the_body_gives_the_lease_back(pool: ModelPool) -> None:
    with pytest.raises(ZeroDivisionError), pool.lease("mllm"):
        _ = 1 / 0
    assert used(pool) == 40 * MIB
    assert pool.evict("mllm") == 40 * MIB
