"""`runtime.max_concurrency`: how many batches compute at once, who goes next, and that nobody waits for ever."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

import fgvr
from fgvr.errors import ConfigError, LeaseTimeout, WouldDeadlock
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.execution_slots import ExecutionSlots
from fgvr.runtime.pool import ModelPool, close_shared
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, MIB, PoolMaker
from .helpers import PICTURE, Inside, until

COPIES = [replace(ENCODER, source=f"copy{i} 1MiB") for i in range(5)]


class Busy(FakeLoader):
    """Encoders that run `during(spec)` inside each call; `now` of them compute, `most` did at once."""

    def __init__(self, during: Callable[[ModelSpec], None]) -> None:
        super().__init__(work=0)
        self.during, self.now, self.most, self._lock = during, 0, 0, threading.Lock()

    def load(self, spec: ModelSpec, device: Device) -> Any:
        model = super().load(spec, device)
        encode = model.encode

        def busy(images: Sequence[Any]) -> Any:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                self.during(spec)
                return encode(images)
            finally:
                with self._lock:
                    self.now -= 1

        model.encode = busy
        return model


def compute(pool: ModelPool, spec: ModelSpec) -> None:
    with pool.lease(spec) as encoder:
        encoder.encode([PICTURE])


def warm(pool: ModelPool, loader: Busy) -> None:
    """All copies resident, so that nobody constructs while others compute."""
    during, loader.during = loader.during, lambda spec: None
    for spec in COPIES:
        compute(pool, spec)
    loader.during, loader.most = during, 0


@contextmanager
def occupied(pool: ModelPool, loader: Busy, spec: ModelSpec) -> Iterator[None]:
    """Somebody computes with this copy until the block ends."""
    entered, leave, during = threading.Event(), threading.Event(), loader.during
    loader.during = lambda one: (entered.set(), leave.wait(20)) if one == spec else during(one)  # type: ignore[func-returns-value]
    thread = threading.Thread(target=compute, args=(pool, spec))
    thread.start()
    assert entered.wait(10)
    loader.during = during
    try:
        yield
    finally:
        leave.set()
        thread.join(10)


def waiting(pool: ModelPool, count: int) -> bool:
    return until(lambda: Inside(pool).waiting_for_slots == count)


@pytest.mark.parametrize("most", [1, 2, 3, None])
def test_no_more_batches_compute_at_once_than_asked_for_over_all_copies(make_pool: PoolMaker, most: int | None) -> None:
    loader = Busy(lambda spec: time.sleep(0.002))
    pool = make_pool(loader=loader, max_concurrency=most)
    warm(pool, loader)
    with ThreadPoolExecutor(15) as threads:
        list(threads.map(lambda i: compute(pool, COPIES[i % 5]), range(150), timeout=60))
    assert loader.most == (most or 5)


def test_who_came_first_goes_first_and_a_busy_copy_keeps_nobody_else(make_pool: PoolMaker) -> None:
    order: list[str] = []
    loader = Busy(lambda spec: order.append(spec.source))
    pool = make_pool(loader=loader, max_concurrency=2)
    warm(pool, loader)
    threads = []
    with occupied(pool, loader, COPIES[0]):
        with occupied(pool, loader, COPIES[1]):
            for number, spec in enumerate((COPIES[0], COPIES[4], COPIES[2], COPIES[3]), 1):
                threads.append(threading.Thread(target=compute, args=(pool, spec)))
                threads[-1].start()
                assert waiting(pool, number)
        for thread in threads[1:]:
            thread.join(10)
        assert order == [spec.source for spec in (COPIES[4], COPIES[2], COPIES[3])], "one place: in the order they came"
    threads[0].join(10)
    assert order[-1] == COPIES[0].source


def test_a_model_used_inside_anothers_call_takes_no_second_place(make_pool: PoolMaker) -> None:
    """The nested call wants the copy that another thread wants, too: who held that copy while waiting for the place would block both."""
    inside, go = threading.Event(), threading.Event()

    def during(spec: ModelSpec) -> None:
        if spec == COPIES[0]:
            inside.set()
            assert go.wait(10)
            compute(pool, COPIES[1])

    loader = Busy(during)
    pool = make_pool(loader=loader, max_concurrency=1)
    warm(pool, loader)
    outer = threading.Thread(target=compute, args=(pool, COPIES[0]))
    outer.start()
    assert inside.wait(10)
    other = threading.Thread(target=compute, args=(pool, COPIES[1]))
    other.start()
    assert waiting(pool, 1)
    go.set()
    for thread in (outer, other):
        thread.join(10)
        assert not thread.is_alive()


def test_calls_inside_each_other_are_refused_instead_of_hanging(make_pool: PoolMaker) -> None:
    both = threading.Barrier(2)

    def during(spec: ModelSpec) -> None:
        if threading.current_thread().name.endswith(spec.source):
            both.wait(10)
            compute(pool, COPIES[1] if spec == COPIES[0] else COPIES[0])

    loader, refused = Busy(during), []
    pool = make_pool(loader=loader, max_concurrency=3)
    warm(pool, loader)

    def outer(spec: ModelSpec) -> None:
        try:
            compute(pool, spec)
        except WouldDeadlock as error:
            refused.append(error)

    threads = [threading.Thread(target=outer, args=(spec,), name=f"starts with {spec.source}") for spec in COPIES[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(refused) == 1
    loader.during = lambda spec: (setattr(loader, "during", lambda spec: None), compute(pool, spec))  # type: ignore[func-returns-value]
    with pytest.raises(WouldDeadlock, match="inside its own call"):
        compute(pool, COPIES[0])
    compute(pool, COPIES[0])


def test_a_place_is_waited_for_as_long_as_a_lease_and_a_busy_copy_as_it_takes(make_pool: PoolMaker) -> None:
    loader = Busy(lambda spec: None)
    pool = make_pool(loader=loader, max_concurrency=1, lease_timeout=0.3)
    warm(pool, loader)
    with occupied(pool, loader, COPIES[0]):
        same = threading.Thread(target=compute, args=(pool, COPIES[0]))
        same.start()
        began = time.monotonic()
        with pytest.raises(LeaseTimeout, match=r"no place within 0\.3 s \(runtime\.max_concurrency=1"):
            compute(pool, COPIES[1])
        assert 0.25 < time.monotonic() - began < 5
        time.sleep(0.3)
        assert same.is_alive(), "as ever: the batch before it may take long"
    same.join(10)
    assert not same.is_alive()
    compute(pool, COPIES[1])


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_leaves_no_trace(make_pool: PoolMaker) -> None:
    loader = Busy(lambda spec: None)
    pool = make_pool(loader=loader, max_concurrency=1)
    warm(pool, loader)
    main = threading.main_thread().ident
    assert main is not None
    with occupied(pool, loader, COPIES[0]):
        interrupt = threading.Thread(target=lambda: (waiting(pool, 1), signal.pthread_kill(main, signal.SIGINT)))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            compute(pool, COPIES[1])
        interrupt.join()
    for spec in COPIES:
        compute(pool, spec)


def test_the_number_changes_live(make_pool: PoolMaker) -> None:
    loader = Busy(lambda spec: None)

    pool = ModelPool(SimulatedDevice(100 * MIB), budget=100 * MIB, max_concurrency=1, loaders=lambda spec: loader)
    warm(pool, loader)
    with occupied(pool, loader, COPIES[0]):
        later = threading.Thread(target=compute, args=(pool, COPIES[1]))
        later.start()
        assert waiting(pool, 1)
        pool.configure(replace(pool.settings, max_concurrency=2))
        later.join(10)
        assert not later.is_alive()
        pool.configure(replace(pool.settings, max_concurrency=1))
        again = threading.Thread(target=compute, args=(pool, COPIES[1]))
        again.start()
        assert waiting(pool, 1)
        pool.configure(replace(pool.settings, max_concurrency=None))
        again.join(10)
        assert not again.is_alive()
    pool.close()


def test_the_configuration_says_it() -> None:
    close_shared()  # whatever an earlier file has left
    try:
        pool = fgvr.shared_pool(fgvr.load_config("models=fake", "runtime.device=simulated:1GiB"))
        assert pool.settings.max_concurrency == 3
        assert fgvr.shared_pool(fgvr.load_config("models=fake", "runtime.device=simulated:1GiB", "runtime.max_concurrency=null")) is pool
        assert pool.settings.max_concurrency is None
    finally:
        close_shared()
    for wrong in ("0", "true", "many"):
        with pytest.raises(ConfigError, match="max_concurrency"):
            fgvr.load_config(f"runtime.max_concurrency={wrong}")


@pytest.mark.parametrize("seed", range(6))
def test_storms_with_faults_timeouts_and_changes_end_with_every_place_free(make_pool: PoolMaker, seed: int) -> None:
    chance = random.Random(seed)
    most = chance.choice([1, 2, 3])

    def during(spec: ModelSpec) -> None:
        drawn = chance.random()
        if drawn < 0.2:
            raise ValueError("a fault inside the call")
        if drawn < 0.5 and spec != COPIES[4]:
            compute(pool, COPIES[4])  # nested, in one direction
        time.sleep(0.001 * drawn)

    loader = Busy(during)
    pool = make_pool(loader=loader, max_concurrency=most, lease_timeout=0.05)
    warm(pool, loader)
    seen: list[str] = []

    def act(index: int) -> None:
        if index % 17 == 0:
            Inside(pool).slots.change(chance.choice([1, 2, 3, None]), 0.05)
        try:
            compute(pool, chance.choice(COPIES))
            seen.append("done")
        except (ValueError, LeaseTimeout) as error:
            seen.append(type(error).__name__)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(act, range(240), timeout=60))
    assert "done" in seen and "ValueError" in seen
    Inside(pool).slots.change(2, 10.0)
    loader.during, loader.most = lambda spec: time.sleep(0.01), 0
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda spec: compute(pool, spec), COPIES, timeout=20))
    assert loader.most == 2 and loader.now == 0


def test_a_turn_costs_less_than_five_microseconds() -> None:
    turns, copy, took = ExecutionSlots(3, 600.0), object(), []
    for _ in range(20):
        began = time.thread_time()
        for _ in range(500):
            with turns.turn(copy):
                pass
        took.append((time.thread_time() - began) / 500)
    assert min(took) < 5e-6
