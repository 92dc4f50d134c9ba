"""What a pool tells its listeners: everything, in order, with the ledger's figures; and that a bad listener harms nobody."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.events import Event
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, MIB, MLLM, PoolMaker


def kinds(heard: list[Event]) -> list[str]:
    return [event.kind for event in heard]


def test_a_lease_with_its_load_and_an_eviction_are_told_in_order(pool: ModelPool) -> None:
    heard: list[Event] = []
    pool.subscribe(heard.append)
    with pool.lease("mllm"):
        pass
    pool.evict("mllm")
    assert kinds(heard) == ["loading", "loaded", "lease", "return", "evicting", "evicted"]
    loading, loaded, lease, back, _, evicted = heard
    assert (loading.key, loading.role, loading.bytes, loading.used) == (MLLM.key, "mllm", 40 * MIB, 40 * MIB)
    assert (loaded.bytes, loaded.used, loaded.limit) == (40 * MIB, 40 * MIB, 100 * MIB)
    assert (lease.models, lease.work, lease.thread, lease.used) == ((MLLM.key,), MIB, "MainThread", 41 * MIB)
    assert back.used == 40 * MIB and back.seconds >= 0
    assert (evicted.bytes, evicted.used) == (40 * MIB, 0)
    assert [e.monotonic for e in heard] == sorted(e.monotonic for e in heard)


def test_a_lease_of_several_models_is_one_event(pool: ModelPool) -> None:
    heard: list[Event] = []
    pool.subscribe(heard.append)
    with pool.lease("encoder", "mllm"):
        pass
    [lease] = [e for e in heard if e.kind == "lease"]
    assert lease.models == (ENCODER.key, MLLM.key)
    assert (lease.key, lease.work, lease.bytes) == ("", 2 * MIB, 70 * MIB)


def test_failures_exhaustion_and_a_new_budget_are_told(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    def fail(spec: ModelSpec) -> None:
        if spec.role == "mllm":
            raise ModelLoadError("damaged")
        if pool.loads["encoder"] == 0 and "oom" not in kinds(heard):
            device.allocate(2000 * MIB)

    pool = make_pool(loader=FakeLoader(on_load=fail))
    heard: list[Event] = []
    pool.subscribe(heard.append)
    with pytest.raises(ModelLoadError), pool.lease("mllm"):
        pass
    with pool.lease("encoder"):
        pass
    pool.set_budget("60MiB")
    assert kinds(heard) == ["loading", "failed", "loading", "oom", "loaded", "lease", "return", "budget"]
    assert heard[1].text == "damaged" and heard[1].used == 0
    assert heard[-1].limit == 60 * MIB


def test_memory_that_does_not_come_back_is_an_alert(pool: ModelPool) -> None:
    heard: list[Event] = []
    with pool.lease("mllm") as mllm:
        holder = {"smuggled": mllm.model}
    pool.subscribe(heard.append)
    pool.evict("mllm")
    assert kinds(heard) == ["evicting", "alert"]
    assert "smuggled" in heard[1].text
    holder.clear()
    assert pool.evict("mllm") == 40 * MIB


def test_a_listener_that_raises_is_dropped_and_the_others_go_on(pool: ModelPool, caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("my disk is full")

    heard: list[Event] = []
    pool.subscribe(broken)
    unsubscribe = pool.subscribe(heard.append)
    with caplog.at_level(logging.ERROR), pool.lease("mllm"):
        pass
    assert kinds(heard) == ["loading", "loaded", "lease", "return"]
    assert sum("dropped" in r.getMessage() for r in caplog.records) == 1
    unsubscribe()
    with pool.lease("mllm"):
        pass
    assert len(heard) == 4


def test_a_listener_may_use_the_pool(pool: ModelPool) -> None:
    heard: list[Event] = []

    def evict_at_once(event: Event) -> None:
        heard.append(event)
        pool.status()
        if event.kind == "return":
            pool.evict(event.key)

    pool.subscribe(evict_at_once)
    with pool.lease("mllm"):
        pass
    assert kinds(heard)[-2:] == ["evicting", "evicted"]
    assert pool.status().used == 0


def test_many_threads_are_told_in_the_ledgers_order(pool: ModelPool) -> None:
    heard: list[Event] = []
    pool.subscribe(heard.append)

    def work(index: int) -> None:
        with pool.lease(("mllm", "encoder", "joint")[index % 3], work=1):
            pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(120)))
    out, charged = 0, 0
    for event in heard:  # replaying the events gives the ledger's own figure at each
        out += {"lease": 1, "return": -1}.get(event.kind, 0)
        charged += event.bytes if event.kind == "loading" else 0
        assert event.used == charged + out, event
    assert out == 0 and kinds(heard).count("lease") == 120
