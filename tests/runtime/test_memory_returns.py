"""Promise 4, memory really comes back: the charge ends when the device shows it, else the holder is named."""

from __future__ import annotations

import gc
import weakref

import pytest

from fgvr.errors import LeaseTimeout
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool

from .conftest import MIB, MLLM, PoolMaker
from .helpers import Inside, state, used


def test_a_model_somebody_still_holds_stays_on_the_books_and_the_holder_is_named(make_pool: PoolMaker, device: SimulatedDevice) -> None:
    pool = make_pool(budget=50 * MIB, lease_timeout=0.3)
    holder = {}
    with pool.lease("mllm") as mllm:
        holder["smuggled"] = mllm.model
    assert pool.evict("mllm") == 0
    assert used(pool) == 40 * MIB == device.allocated()
    assert "smuggled" in next(m.error for m in pool.status() if m.role == "mllm")
    with pytest.raises(LeaseTimeout, match="smuggled"), pool.lease("encoder"):
        pass
    with pool.lease("mllm") as again:  # still the one copy
        assert again.model is holder["smuggled"]
    holder.clear()
    assert pool.loads["mllm"] == 1
    Inside(pool).ledger.find("mllm").stuck_until = 0.0
    with pool.lease("encoder"):
        assert state(pool, MLLM) == "absent"


def test_memory_the_device_does_not_show_as_free_stays_charged_until_it_does(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=75 * MIB)
    with pool.lease("mllm") as mllm:
        kept = mllm.model.weights.block  # a tensor, not the model
    del mllm
    assert pool.evict("mllm") == 0
    assert state(pool, MLLM) == "absent"
    assert used(pool) == 40 * MIB
    del kept
    with pool.lease("encoder", "joint"):
        assert used(pool) == 52 * MIB


def test_an_evicted_model_is_garbage_at_once(pool: ModelPool) -> None:
    gc.disable()
    try:
        with pool.lease("mllm") as mllm:
            watch = weakref.ref(mllm.model)
        pool.evict("mllm")
        assert watch() is None
    finally:
        gc.enable()
