"""Promise 3, borrowed and never kept: leased models stay, several come together or not at all, nobody waits while holding."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fgvr.errors import FgvrError, LeaseTimeout, ModelLoadError, OutOfBudget, RuntimeConflict, WouldDeadlock
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeEncoder, FakeLoader

from .conftest import ENCODER, MIB, MLLM, PoolMaker
from .helpers import EQUALLY_BIG, PICTURE, Inside, state


def test_a_leased_model_is_never_evicted(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=75 * MIB)
    with pool.lease(MLLM), pytest.raises(OutOfBudget), pool.lease(EQUALLY_BIG):
        pass
    with pool.lease(MLLM) as mllm:
        with ThreadPoolExecutor(1) as thread, pytest.raises(LeaseTimeout, match="MainThread"):
            thread.submit(pool.lease(EQUALLY_BIG, timeout=0.1).__enter__).result(10)
        with pytest.raises(RuntimeConflict, match="leased"):
            pool.evict("mllm")
        assert pool.cleanup() == 0
        assert mllm.generate([PICTURE], ["look"])
    with pool.lease(EQUALLY_BIG):  # idle now, so it yields
        assert state(pool, MLLM) == "absent"


def test_several_models_are_leased_together_or_not_at_all(make_pool: PoolMaker) -> None:
    def fail(spec: ModelSpec) -> None:
        if spec.role == "mllm":
            raise ModelLoadError("no such file")

    pool = make_pool(loader=FakeLoader(on_load=fail))
    with pytest.raises(ModelLoadError), pool.lease("encoder", "mllm"):
        pass
    assert all(m.leases == 0 for m in pool.status())
    with pool.lease("encoder", "joint", "encoder") as (a, b, c):
        assert a is c
        assert a.encode([PICTURE]).shape == (1, 64)
        assert 0 <= b.match([PICTURE], ["red"])[0] <= 1


def test_a_nested_lease_that_would_wait_for_others_says_so(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=75 * MIB)
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.lease("mllm"):
            holding.set()
            assert release.wait(10)

    with ThreadPoolExecutor(1, thread_name_prefix="holder") as thread:
        done = thread.submit(hold)
        holding.wait(10)
        with pool.lease("encoder"):
            with pytest.raises(WouldDeadlock, match="holder"), pool.lease("joint"):
                pass
            with pool.lease("encoder"):  # what is there is lent again at once
                pass
        release.set()
        done.result(10)
    with pool.lease("encoder"), pool.lease("mllm"):  # nobody holds anything: the idle make room
        pass


def test_two_threads_that_take_the_same_pair_crosswise_both_finish(pool: ModelPool) -> None:
    def work(first: str, second: str) -> None:
        for _ in range(50):
            with pool.lease(first, second):
                pass
            with pool.lease(first), pool.lease(second):
                pass

    with ThreadPoolExecutor(2) as threads:
        for done in (threads.submit(work, "mllm", "encoder"), threads.submit(work, "encoder", "mllm")):
            done.result(60)
    assert pool.loads == {"mllm": 1, "encoder": 1, "joint": 0}
    assert sum(m.hits + m.loads for m in pool.status()) == 2 * 50 * 4  # each lease of each was counted
    assert not Inside(pool).ledger.grants


def test_a_model_kept_after_its_lease_is_useless_and_costs_nothing(pool: ModelPool, device: SimulatedDevice) -> None:
    with pool.lease("encoder") as encoder:
        encoder.encode([PICTURE])
    with pytest.raises(FgvrError, match="not leased"):
        encoder.encode([PICTURE])
    assert pool.evict("encoder") == 30 * MIB
    assert device.reserved() == 0


def test_an_exception_somebody_keeps_does_not_keep_the_model(pool: ModelPool, device: SimulatedDevice) -> None:
    with pool.lease("mllm") as mllm:
        mllm.model.fault = RuntimeError("bad batch")
        with pytest.raises(RuntimeError) as kept:
            mllm.generate([PICTURE], ["look"])
    assert str(kept.value) == "bad batch"
    assert pool.evict("mllm") == 40 * MIB


def test_batches_follow_the_spec_and_work_is_counted(pool: ModelPool, intercept) -> None:
    sizes: list[int] = []
    intercept(FakeEncoder, "encode", lambda encode, self, images: sizes.append(len(images)) or encode(self, images))
    pool.register(replace(ENCODER, batch_size=2))
    with pool.lease("encoder") as encoder:
        assert encoder.encode([PICTURE] * 5).shape == (5, 64)
        assert encoder.encode([]).shape[0] == 0
        encoder.encode_text(["a", "b"])
    with pool.lease("mllm") as mllm:
        (reply,) = mllm.generate([PICTURE], ["what is it"])
        mllm.score([PICTURE] * 2, ["x y", "z"], [["a"], ["b", "c"]])
        with pytest.raises(FgvrError, match="1 images, 2 prompts"):
            mllm.generate([PICTURE], ["a", "b"])
    work = pool.counters.snapshot()
    assert sizes == [2, 2, 1]
    assert (work.encoder_forwards, work.text_forwards, work.mllm_calls) == (5, 2, 3)
    assert (work.prompt_tokens, work.new_tokens) == (3 + 2 + 1, reply.new_tokens)
    assert pool.counters.snapshot().mllm_calls == work.mllm_calls
