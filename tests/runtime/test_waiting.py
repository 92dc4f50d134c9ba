"""Promise 6, no waiter starves and nothing hangs: order, timeouts, cancellation, the construct lock."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fgvr.errors import FgvrError, LeaseTimeout, WouldDeadlock
from fgvr.runtime import status_records
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.locks import CONSTRUCT, ConstructLock
from fgvr.runtime.monitor import Monitor
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.timeline import Start
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, MIB, MLLM, PoolMaker
from .helpers import EQUALLY_BIG, PICTURE, Gate, Inside, state, status, until, used


def test_a_waiter_for_a_big_model_is_served_under_steady_load_of_small_ones(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB)
    stop, between, served = threading.Event(), [0], []

    def churn(role: str) -> None:
        while not stop.is_set():
            with pool.lease(role):
                between[0] += 1
                time.sleep(0.001)

    with ThreadPoolExecutor(6) as threads:
        for _ in range(3):
            threads.submit(churn, "encoder")
            threads.submit(churn, "joint")
        try:
            for _ in range(5):
                seen = between[0]
                assert until(lambda seen=seen: between[0] > seen + 10)  # the small ones are at it
                with pool.lease("mllm", timeout=20):
                    served.append(status(pool, MLLM).here)  # draining, when the small ones wait for its place again
        finally:
            stop.set()
    assert served == [True] * 5
    assert pool.loads["mllm"] == 5


def test_capacity_is_given_in_order_of_asking(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=45 * MIB, loader=FakeLoader(work=0))
    order: list[int] = []
    specs = [ModelSpec("mllm", "fake", f"{n} 40MiB") for n in range(4)]

    def ask(index: int) -> None:
        with pool.lease(specs[index]):
            order.append(index)

    with pool.lease("mllm"):
        threads = []
        for index in range(4):
            threads.append(threading.Thread(target=ask, args=(index,)))
            threads[-1].start()
            while Inside(pool).waiting <= index:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]


def test_a_model_whose_place_is_waited_for_is_shown_as_draining(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB)

    def shown() -> tuple[str, str, int]:
        (row,) = status_records.models(pool, [MLLM])
        return row["state"], row["tier"], status_records.stats(pool, Monitor(pool))["total_models"]

    with ThreadPoolExecutor(1) as thread:
        with pool.lease("mllm"):
            assert shown() == ("resident", "simulated", 1)
            waiting = thread.submit(pool.lease("encoder").__enter__)
            assert until(lambda: state(pool, MLLM) == "draining")
            assert shown() == ("draining", "simulated", 1), "it is there, and computes"
            assert status(pool, MLLM).here and status(pool, MLLM).placed
            assert "draining" in repr(pool.status())
            assert [r.key for r in Start.of(pool).resident] == [MLLM.key]
        waiting.result(10)
    assert [state(pool, s) for s in (MLLM, ENCODER)] == ["absent", "resident"]
    Inside(pool).give_back(next(iter(Inside(pool).ledger.grants)))
    with pool.lease("encoder"), ThreadPoolExecutor(1) as thread:
        with pytest.raises(LeaseTimeout):
            thread.submit(pool.lease("mllm", timeout=0.1).__enter__).result(10)
        assert state(pool, ENCODER) == "resident", "whoever it was drained for has given up"


def test_a_lease_waits_no_longer_than_its_timeout(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB)
    with pool.lease("mllm"), ThreadPoolExecutor(1) as thread:
        began = time.monotonic()
        with pytest.raises(LeaseTimeout, match=MLLM.key):
            thread.submit(pool.lease("encoder", timeout=0.2).__enter__).result(10)
        assert 0.15 < time.monotonic() - began < 5
    assert not Inside(pool).waiting
    assert all(e.drain_for is None for e in Inside(pool).ledger.entries.values())


def test_building_a_model_excludes_computing_and_waits_for_it(make_pool: PoolMaker) -> None:
    beside: list[int] = []

    def check(spec: ModelSpec) -> None:
        beside.append(len(CONSTRUCT._readers))

    pool = make_pool(loader=FakeLoader(on_load=check, seconds=0.005, work=1024))

    def work(index: int) -> None:
        with pool.lease("encoder") as encoder:
            encoder.encode([PICTURE])
        with pool.lease(("mllm", "joint")[index % 2]):
            pass
        if index % 5 == 0:
            pool.cleanup()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(80)))
    assert len(beside) >= 3
    assert not any(beside)
    assert pool.counters.snapshot().encoder_forwards == 80


def test_the_construct_lock_lets_writers_first_and_readers_again() -> None:
    lock = ConstructLock()
    with lock.read(), lock.read(), pytest.raises(WouldDeadlock), lock.write(1):
        pass
    with lock.read(), ThreadPoolExecutor(1) as thread:

        def write() -> None:
            with lock.write(0.05):
                pass

        with pytest.raises(LeaseTimeout):
            thread.submit(write).result(10)
        with lock.read():
            pass
    with lock.write(1), lock.read():
        pass


def test_a_closed_pool_refuses_and_drops_what_comes_back(pool: ModelPool, device: SimulatedDevice) -> None:
    with pool.lease("mllm"), pool.lease("encoder"):
        pool.close()
        assert device.allocated() == 70 * MIB
    assert device.allocated() == 0
    with pytest.raises(FgvrError, match="closed"), pool.lease("mllm"):
        pass


# --- cancellation ------------------------------------------------------------------------------------------------------------


def test_a_waiter_told_to_stop_leaves_the_queue_to_the_others(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB)
    stop = threading.Event()

    def wait_in_vain() -> str:
        with pytest.raises(LeaseTimeout) as caught, pool.lease("encoder", stop=stop):
            pass
        return str(caught.value)

    with ThreadPoolExecutor(2) as threads, pool.lease("mllm"):
        first = threads.submit(wait_in_vain)
        assert until(lambda: Inside(pool).waiting == 1)
        second = threads.submit(lambda: pool.lease(EQUALLY_BIG, timeout=20).__enter__().nbytes)
        assert until(lambda: Inside(pool).waiting == 2)
        stop.set()
        assert "told to stop" in first.result(10)
        assert Inside(pool).waiting == 1
        assert status(pool, MLLM).here
    assert second.result(10) == 40 * MIB
    Inside(pool).give_back(next(iter(Inside(pool).ledger.grants)))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals as on POSIX")
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_leaves_no_ticket_and_no_mark(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB)
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.lease("mllm"):
            holding.set()
            release.wait(20)

    def interrupt() -> None:
        if until(lambda: Inside(pool).waiting):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with ThreadPoolExecutor(2) as threads:
        held = threads.submit(hold)
        assert holding.wait(10)
        threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt), pool.lease("encoder", timeout=20):
            pass
        assert not Inside(pool).waiting
        assert all(e.drain_for is None and e.mover is None for e in Inside(pool).ledger.entries.values())
        release.set()
        held.result(10)
    with pool.lease("encoder"):
        pass


def test_a_load_that_gets_no_moment_in_time_leaves_the_model_absent(make_pool: PoolMaker) -> None:
    """A long computation elsewhere holds the construct lock: the loader gives up at its timeout, the next one may try."""
    pool = make_pool(loader=FakeLoader(work=1024))
    with CONSTRUCT.read(), ThreadPoolExecutor(1) as thread:
        with pytest.raises(LeaseTimeout, match="no moment to load"):
            thread.submit(pool.lease("mllm", timeout=0.1).__enter__).result(10)
        assert (state(pool, MLLM), used(pool)) == ("absent", 0)
    with pool.lease("mllm"):
        pass


def test_who_waits_for_anothers_load_may_give_up_and_the_load_goes_on(make_pool: PoolMaker) -> None:
    gate = Gate()
    pool = make_pool(loader=FakeLoader(on_load=gate))
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(lambda: pool.lease("mllm").__enter__().nbytes)
        assert gate.entered.wait(10)
        with pytest.raises(LeaseTimeout):
            threads.submit(pool.lease("mllm", timeout=0.1).__enter__).result(10)
        assert state(pool, MLLM) == "loading"
        gate.open.set()
        assert loading.result(10) == 40 * MIB
    Inside(pool).give_back(next(iter(Inside(pool).ledger.grants)))
    assert pool.loads["mllm"] == 1


def test_an_interrupted_loader_does_not_undo_the_next_ones_load(make_pool: PoolMaker) -> None:
    """By hand: a nested request, which has no ticket, is interrupted, and another takes over before the first has cleaned up."""
    first, second = threading.Event(), Gate()
    calls: list[str] = []

    def load(spec: ModelSpec) -> None:
        if spec.role != "mllm":
            return
        calls.append(spec.role)
        if len(calls) == 1:
            raise KeyboardInterrupt
        first.set()
        second(spec)

    pool = make_pool(loader=FakeLoader(on_load=load))
    leave = Inside(pool).admission.withdraw

    def late(ask) -> bool:
        if not first.is_set() and calls:  # the interrupted one: the state is settled, its own clean-up is still to come
            Inside(pool).condition.release()
            try:
                other.append(threads.submit(lambda: pool.lease("mllm").__enter__().nbytes))
                assert first.wait(10)
            finally:
                Inside(pool).condition.acquire()
        return leave(ask)

    other: list = []
    Inside(pool).admission.withdraw = late
    with ThreadPoolExecutor(1) as threads:
        with pool.lease("joint", work=0), pytest.raises(KeyboardInterrupt), pool.lease("mllm"):
            pass
        assert (state(pool, MLLM), used(pool)) == ("loading", 60 * MIB)
        second.open.set()
        assert other[0].result(10) == 40 * MIB
    Inside(pool).give_back(next(iter(Inside(pool).ledger.grants)))
    assert pool.loads["mllm"] == 1
