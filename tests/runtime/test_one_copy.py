"""Promise 1, one copy: the same key is the same object, and N threads asking at once cause one load."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from fgvr.errors import ModelLoadError
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, PoolMaker
from .helpers import Gate, used


def test_sixty_four_threads_that_ask_for_three_models_at_once_cause_three_loads(make_pool: PoolMaker) -> None:
    pool = make_pool(loader=FakeLoader(seconds=0.02, work=1024))
    together = threading.Barrier(64)

    def work(index: int) -> tuple[int, ...]:
        together.wait(20)
        with pool.lease("mllm", "encoder", "joint", work=1024) as models:
            return tuple(id(model.model) for model in models)

    with ThreadPoolExecutor(64) as threads:
        copies = list(threads.map(work, range(64)))
    assert pool.loads == {"mllm": 1, "encoder": 1, "joint": 1}
    assert len(set(copies)) == 1


def test_sixty_four_threads_that_ask_for_one_of_three_cause_three_loads(make_pool: PoolMaker) -> None:
    pool = make_pool(loader=FakeLoader(seconds=0.02, work=1024))

    def work(index: int) -> int:
        with pool.lease(("mllm", "encoder", "joint")[index % 3]) as model:
            return id(model.model)

    with ThreadPoolExecutor(64) as threads:
        copies = list(threads.map(work, range(192)))
    assert pool.loads == {"mllm": 1, "encoder": 1, "joint": 1}
    assert len(set(copies)) == 3


def test_all_waiters_of_one_load_get_the_same_error(make_pool: PoolMaker) -> None:
    gate, calls = Gate(), Counter()

    def fail(spec: ModelSpec) -> None:
        calls[spec.role] += 1
        gate(spec)
        raise ModelLoadError("model.safetensors is damaged")

    pool = make_pool(loader=FakeLoader(on_load=fail))

    def ask() -> str:
        with pytest.raises(ModelLoadError) as caught, pool.lease("mllm"):
            pass
        return str(caught.value)

    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask) for _ in range(8)]
        gate.entered.wait(10)
        time.sleep(0.05)
        gate.open.set()
        assert {a.result(10) for a in answers} == {"model.safetensors is damaged"}
    assert calls["mllm"] == 1


def test_a_model_is_loaded_when_first_used_and_not_before(pool: ModelPool) -> None:
    assert pool.loads == {"mllm": 0, "encoder": 0, "joint": 0}
    assert used(pool) == 0
    with pool.lease("encoder"):
        pass
    assert pool.loads["encoder"] == 1
    with pool.lease(ENCODER.key), pool.lease(ENCODER):
        pass
    assert pool.loads == {"mllm": 0, "encoder": 1, "joint": 0}
