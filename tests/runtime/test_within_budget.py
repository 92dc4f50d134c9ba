"""Promise 2, inside the budget at every instant: reserved before loading, refused with a plan when it can never fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from fgvr.errors import ConfigError, OutOfBudget, RuntimeConflict
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, JOINT, MIB, MLLM, PoolMaker
from .helpers import EQUALLY_BIG, PICTURE, Gate, Inside, state, used


def test_the_device_never_holds_more_than_the_budget(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    pool = make_pool(budget=75 * MIB, loader=FakeLoader(seconds=0.001, work=4 * MIB))

    def work(index: int) -> None:
        role = ("mllm", "encoder", "joint")[(index * 7 + index // 5) % 3]
        with pool.lease(role) as model:
            if role == "mllm":
                model.generate([PICTURE], ["look"])
            elif role == "encoder":
                model.encode([PICTURE])

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(150)))
    assert device.peak() <= 75 * MIB
    assert pool.status().peak <= 75 * MIB
    assert pool.peak_bytes == device.peak() > 40 * MIB


def test_bytes_are_reserved_before_a_load_begins(make_pool: PoolMaker) -> None:
    gate = Gate()
    pool = make_pool(loader=FakeLoader(on_load=gate, work=0))
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(pool.lease("mllm").__enter__)
        gate.entered.wait(10)
        assert state(pool, MLLM) == "loading"
        assert used(pool) == 40 * MIB
        gate.open.set()
        done.result(10)
    Inside(pool).give_back(next(iter(Inside(pool).ledger.grants)))


def test_a_measured_size_replaces_the_estimate(make_pool: PoolMaker) -> None:
    class Optimist(FakeLoader):
        def estimate(self, spec: ModelSpec) -> int:
            return super().estimate(spec) // 2 if self.lying else super().estimate(spec)

        def load(self, spec, device):
            self.lying = False
            return super().load(spec, device)

        lying = True

    pool = make_pool(loader=Optimist(work=0))
    with pool.lease("mllm"):
        assert used(pool) == 40 * MIB
        assert "measured 40.0 MiB, estimated 20.0 MiB" in repr(pool.status())


def test_idle_models_yield_longest_unused_first(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=95 * MIB)
    for role in ("encoder", "joint", "mllm", "encoder"):
        with pool.lease(role):
            pass
    with pool.lease(EQUALLY_BIG):
        assert [state(pool, s) for s in (JOINT, MLLM, ENCODER)] == ["absent", "absent", "resident"]
    assert pool.loads["mllm"] == 2


def test_max_models_unloads_before_it_loads(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    pool = make_pool(budget=900 * MIB, max_models=1)
    for role in ("mllm", "encoder", "mllm"):
        with pool.lease(role):
            assert sum(m.state == "resident" for m in pool.status()) == 1
    with pytest.raises(OutOfBudget, match="max_models=1"), pool.lease("mllm", "encoder"):
        pass
    assert device.peak() <= 41 * MIB


def test_what_can_never_fit_is_refused_at_once_and_evicts_nothing(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB)
    with pool.lease("encoder"):
        pass
    with pytest.raises(OutOfBudget) as caught, pool.lease("mllm", "encoder"):
        pass
    assert state(pool, ENCODER) == "resident"
    plan = caught.value.plan
    assert plan is not None
    assert not plan.fits
    assert {p.name: p.bytes for p in plan.parts} == {"mllm weights": 40 * MIB, "encoder weights": 30 * MIB, "working memory": 2 * MIB}
    assert any("batch_size" in line for line in plan.advice)
    assert any("budget" in line for line in plan.advice)
    with pytest.raises(OutOfBudget), pool.lease("encoder", work=31 * MIB):
        pass


def test_own_leases_count_towards_what_can_fit(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=60 * MIB)
    with pool.lease("encoder"), pytest.raises(OutOfBudget), pool.lease("mllm"):
        pass
    with pool.lease("mllm"):  # the encoder is idle now, so it yields
        assert state(pool, ENCODER) == "absent"


def test_pins_hold_under_pressure_and_follow_their_role(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=75 * MIB)
    pool.pin("encoder")
    with pool.lease("encoder"):
        pass
    with pool.lease("mllm"):
        pass
    with pool.lease("joint"):
        assert [state(pool, s) for s in (ENCODER, MLLM)] == ["resident", "absent"]
    with pytest.raises(RuntimeConflict, match="pinned"):
        pool.evict("encoder")
    pool.register(ModelSpec("encoder", "fake", "newer 30MiB"))
    assert pool.cleanup() == 50 * MIB  # the old encoder is free to go
    pool.unpin("encoder")
    assert not any(m.pinned for m in pool.status())


def test_a_budget_changes_live_and_idle_models_go_until_it_holds(pool: ModelPool) -> None:
    for role in ("encoder", "joint", "mllm"):
        with pool.lease(role):
            pass
    assert pool.set_budget("60MiB") == 60 * MIB
    assert used(pool) == 60 * MIB
    assert state(pool, ENCODER) == "absent"
    with pool.lease("mllm"), pytest.raises(OutOfBudget) as caught:
        pool.set_budget(30 * MIB)
    assert pool.budget == 60 * MIB
    assert caught.value.plan and not caught.value.plan.fits
    assert pool.set_budget(0.05) == 50 * MIB
    with pytest.raises(ConfigError, match="GiB"):
        pool.set_budget("banana")


def test_a_refusal_lists_what_is_there_beside_what_is_counted(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=100 * MIB, loader=FakeLoader(work=0))
    huge = ModelSpec("mllm", "fake", "huge 95MiB")
    with pool.lease("encoder"):
        pass
    with ThreadPoolExecutor(1, "another") as thread, pool.lease("mllm"):
        with pytest.raises(OutOfBudget) as caught:
            thread.submit(pool.lease(replace(huge, source="huge 101MiB")).__enter__).result(10)
        with pytest.raises(OutOfBudget) as nested, pool.lease(huge):
            pass
        with pytest.raises(OutOfBudget) as lowered:
            pool.set_budget(35 * MIB)
    plan = caught.value.plan
    assert plan is not None and plan.needed == 101 * MIB, "as before: others are not counted"
    assert {part.name.split(",")[0]: (part.bytes, part.note.partition(", ")[2]) for part in plan.optional} == {
        MLLM.key: (40 * MIB, "leased by MainThread; can leave after that"),
        ENCODER.key: (30 * MIB, "resident; can leave"),
    }
    assert str(plan) in str(caught.value) and f"{ENCODER.key}, not counted" in str(caught.value)
    for refusal in (nested, lowered):
        assert refusal.value.plan is not None
        assert [part.name for part in refusal.value.plan.optional] == [f"{ENCODER.key}, not counted"], "the caller's own lease is counted"


# --- another batch size -------------------------------------------------------------------------------------------------------


class PerItem(FakeLoader):
    """An encoder that takes a MiB for each image of a batch, and notes how many images each had; a little heavier than estimated."""

    def __init__(self) -> None:
        super().__init__(work=0)
        self.batches: list[int] = []

    def estimate(self, spec: ModelSpec) -> int:
        return super().estimate(spec) - MIB // 2

    def work_bytes(self, spec: ModelSpec) -> int:
        return spec.batch_size * MIB

    def load(self, spec: ModelSpec, device: Device) -> Any:
        model = super().load(replace(spec, source="encoder 31MiB"), device)
        encode = model.encode

        def counted(images: Sequence[Any]) -> Any:
            self.batches.append(len(images))
            held = device.allocate(len(images) * MIB)  # type: ignore[attr-defined]
            time.sleep(0.0005)
            answer = encode(images)
            del held
            return answer

        model.encode = counted
        return model


def batches_of(size: int) -> ModelSpec:
    return replace(ENCODER, batch_size=size)


@pytest.mark.parametrize("sizes", [(1, 32, 1), (32, 1, 32)])
def test_another_batch_size_takes_the_memory_it_needs_and_keeps_the_measured_weights(make_pool: PoolMaker, sizes: Sequence[int]) -> None:
    loader = PerItem()
    pool = make_pool(loader=loader)
    for size in sizes:
        with pool.lease(batches_of(size)) as encoder:
            assert used(pool) == (30 + size) * MIB + MIB // 2
            encoder.encode([PICTURE] * 32)
            assert set(loader.batches) == {size}
            loader.batches.clear()
        assert [part.bytes for part in pool.plan("encoder").parts] == [30 * MIB + MIB // 2, size * MIB]
    assert pool.loads["encoder"] == 1
    with pytest.raises(OutOfBudget, match="can never fit"):
        pool.lease(batches_of(100)).__enter__()


def test_a_running_lease_keeps_to_what_it_has_memory_for(make_pool: PoolMaker) -> None:
    loader = PerItem()
    pool = make_pool(loader=loader)
    with pool.lease(batches_of(2)) as encoder:
        pool.register(batches_of(32))
        encoder.encode([PICTURE] * 4)
        assert loader.batches == [2, 2]
        with pool.lease("encoder") as wide:
            wide.encode([PICTURE] * 4)  # the smaller lease may be computing at the same time
    with pool.lease("encoder") as wide:
        wide.encode([PICTURE] * 40)
    assert loader.batches == [2, 2, 2, 2, 32, 8]


def test_leases_of_different_batch_sizes_stay_within_the_budget_together(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    pool = make_pool(budget=70 * MIB, loader=PerItem())

    def use(index: int) -> None:
        size = (1, 4, 16, 32)[index % 4]
        with pool.lease(batches_of(size)) as encoder:
            assert len(encoder.encode([PICTURE] * 33)) == 33

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(80), timeout=60))
    assert device.peak() <= 70 * MIB
    assert pool.status().peak <= 70 * MIB
    assert used(pool) == 30 * MIB + MIB // 2
