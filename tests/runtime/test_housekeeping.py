"""The pool's own thread: models idle for too long; and the least stay that keeps two users from thrashing."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.lifecycle import Lifecycle
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, MIB, MLLM, PoolMaker
from .helpers import state, until, used


def use(pool: ModelPool, role: str) -> None:
    with pool.lease(role):
        pass


def keepers(before: frozenset[threading.Thread] = frozenset()) -> frozenset[threading.Thread]:
    """Those that live now and were not there `before`; of an earlier test's pool one may just be ending."""
    return frozenset(thread for thread in threading.enumerate() if thread.name == "fgvr-housekeeping") - before


def test_a_model_idle_for_its_ttl_goes_and_a_leased_one_stays(make_pool: PoolMaker) -> None:
    pool = make_pool(ttl=0.05)
    with pool.lease("mllm"):
        with pool.lease("encoder"):
            pass
        assert until(lambda: state(pool, ENCODER) == "absent")
        assert state(pool, MLLM) == "resident"
    assert until(lambda: state(pool, MLLM) == "absent")
    assert used(pool) == 0


def test_a_pinned_model_outlives_its_ttl(make_pool: PoolMaker) -> None:
    pool = make_pool(ttl=0.03, pin=["mllm"])
    with pool.lease("mllm"), pool.lease("encoder"):
        pass
    assert until(lambda: state(pool, ENCODER) == "absent")
    assert state(pool, MLLM) == "resident"


def test_a_ttl_parks_first_and_drops_later(make_pool: PoolMaker) -> None:
    seen = []
    pool = make_pool(ttl=0.05, host_budget=50 * MIB, loader=FakeLoader(movable=True))
    pool.subscribe(lambda event: seen.append(event.kind))
    with pool.lease("mllm"):
        pass
    assert until(lambda: state(pool, MLLM) == "absent")
    assert [kind for kind in seen if kind in ("parked", "evicted")] == ["parked", "evicted"]
    assert pool.status().host_used == 0


class Keeper(FakeLoader):
    """Holds on to what it loads, as a careless caller would."""

    held: Any = None

    def load(self, spec: ModelSpec, device: Device) -> Any:
        self.held = super().load(spec, device)
        return self.held


@pytest.fixture
def rounds(intercept) -> list[float]:
    """Grows with each look of the pools' own threads."""
    seen: list[float] = []
    intercept(Lifecycle, "expire", lambda look, keeper: (seen.append(time.monotonic()), look(keeper))[1])
    return seen


def test_a_pinned_copy_in_main_memory_keeps_the_thread_from_nothing(make_pool: PoolMaker, rounds: list[float]) -> None:
    pool = make_pool(ttl=0.2, host_budget=50 * MIB, loader=FakeLoader(movable=True))
    use(pool, "mllm")
    assert until(lambda: state(pool, MLLM) == "parked")
    pool.pin("mllm")
    time.sleep(0.4)  # twice its time to live is over, and it stays
    rounds.clear()
    time.sleep(0.5)
    assert len(rounds) <= 5
    assert state(pool, MLLM) == "parked"
    pool.unpin("mllm")
    assert until(lambda: state(pool, MLLM) == "absent")


def test_a_copy_that_somebody_holds_is_tried_again_only_after_a_while(
    make_pool: PoolMaker, rounds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgvr.runtime.lifecycle.STUCK_SECONDS", 1.0)
    loader, tries = Keeper(movable=True), []
    pool = make_pool(ttl=0.2, host_budget=50 * MIB, loader=loader)
    pool.subscribe(lambda event: tries.append(event) if event.kind == "alert" else None)
    use(pool, "mllm")
    assert until(lambda: tries)
    rounds.clear()
    time.sleep(0.7)
    assert len(tries) == 1 and len(rounds) <= 6
    loader.held = None
    assert until(lambda: state(pool, MLLM) == "absent")


def test_the_thread_starts_when_needed_is_one_and_ends_with_its_pool(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    before = keepers()
    plain = make_pool()
    with plain.lease("mllm"):
        pass
    assert not keepers(before)
    pool = make_pool(budget=300 * MIB, ttl=60.0)
    for _ in range(3):
        with pool.lease("mllm"):
            pass
    assert len(keepers(before)) == 1
    pool.close()
    assert until(lambda: not keepers(before))


def test_the_thread_does_not_keep_a_forgotten_pool() -> None:
    loader, before = FakeLoader(), keepers()
    pool = ModelPool(SimulatedDevice(100 * MIB), budget=100 * MIB, ttl=60.0, loaders=lambda spec: loader)
    with pool.lease(MLLM):
        pass
    assert len(keepers(before)) == 1
    del pool
    gc.collect()
    assert until(lambda: not keepers(before))


# --- the least stay ----------------------------------------------------------------------------------------------------------


def test_two_users_in_turn_do_not_thrash_with_a_least_stay(make_pool: PoolMaker) -> None:
    """Room for one, two threads with many short leases each: without a least stay nearly each lease is a load."""
    loads = {}
    for stay in (0.0, 0.2):
        pool = make_pool(budget=45 * MIB, loader=FakeLoader(work=0), min_residency=stay)
        together = threading.Barrier(2)

        def work(role: str, pool: ModelPool = pool, together: threading.Barrier = together) -> None:
            together.wait(10)
            for _ in range(40):
                with pool.lease(role):
                    time.sleep(0.0005)

        threads = [threading.Thread(target=work, args=(role,)) for role in ("mllm", "encoder")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        loads[stay] = sum(pool.loads.values())
        pool.close()
    assert loads[0.2] < loads[0.0] / 2


def test_a_least_stay_does_not_slow_down_one_user_alone(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=45 * MIB, loader=FakeLoader(work=0), min_residency=30.0)
    for _ in range(3):
        for role in ("mllm", "encoder"):
            with pool.lease(role, timeout=5):
                pass
    assert pool.loads == {"mllm": 3, "encoder": 3, "joint": 0}


def test_the_end_of_a_least_stay_between_two_looks_at_the_clock_is_not_missed(
    make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it falls, who waits looks again: a stay seen as not over, then as over, once left nothing to wait for (one storm in 500)."""
    stay = 0.05
    for early in range(12):  # so many looks before the end, all others after it
        pool = make_pool(budget=45 * MIB, loader=FakeLoader(work=0), min_residency=stay)
        another = threading.Thread(target=use, args=(pool, "mllm"), name="another")
        another.start()
        another.join(10)
        began, looks = time.monotonic(), itertools.count()

        def look(n: Iterator[int] = looks, t: float = began, early: int = early) -> float:
            return t if next(n) < early else max(t + stay, time.monotonic())

        clock = SimpleNamespace(monotonic=look, time=time.time)
        with monkeypatch.context() as patched:
            for module in ("admission", "ledger"):
                patched.setattr(f"fgvr.runtime.{module}.time", clock)
            with pool.lease("encoder", timeout=20):
                assert time.monotonic() - began < 10, f"{early} looks before the end: nothing woke it but its own timeout"
        pool.close()


def test_a_kept_log_record_keeps_no_model(make_pool: PoolMaker, device: SimulatedDevice, caplog: pytest.LogCaptureFixture) -> None:
    """As pytest's own, Sentry's, or a notebook's list of records: found when storms failed only behind tests that show the log."""

    def once(spec: ModelSpec, way: str) -> None:
        if way == "park" and not failed.is_set():
            failed.set()
            raise KeyboardInterrupt

    failed = threading.Event()
    with caplog.at_level(logging.INFO, logger="fgvr"):
        pool = make_pool(ttl=0.02, host_budget=50 * MIB, loader=FakeLoader(movable=True, on_move=once))
        with pool.lease("mllm"):
            pass
        assert until(lambda: any("housekeeping failed" in message for message in caplog.messages))
    assert "KeyboardInterrupt" in caplog.text and all(record.exc_info is None for record in caplog.records)
    assert pool.evict("mllm", park=False) in (0, 40 * MIB)  # housekeeping may have been first
    assert until(lambda: device.allocated() == 0)
