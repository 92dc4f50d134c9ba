"""The pool's settings: from the configuration, refused with every wrong key named, applied to a living pool."""

from __future__ import annotations

import pytest

import fgvr
from fgvr.errors import ConfigError
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.cuda import CudaDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.policy import cost_aware, lru
from fgvr.runtime.pool import close_shared
from fgvr.runtime.pool_settings import PoolSettings

from .conftest import MIB

DEFAULT = fgvr.load_config().to_dict()["runtime"]


def test_the_shipped_defaults_are_the_plain_pool() -> None:
    for device in (CpuDevice(), SimulatedDevice(MIB)):
        found = PoolSettings.of(DEFAULT, device)
        assert found == PoolSettings(found.budget, asked="auto", max_concurrency=3, allocator=DEFAULT["allocator"])


def test_sizes_have_units_and_only_devices_with_own_memory_have_a_host_tier() -> None:
    words = {"host_budget": "2GiB", "reserve": "1MiB", "policy": "cost_aware", "ttl": 300, "pin": ["mllm"], "budget": 0.5}
    on = PoolSettings.of(DEFAULT | words | {"priority": {"joint": -1, "mllm": 0}}, SimulatedDevice(4 * MIB))
    assert (on.host_budget, on.reserve, on.policy, on.ttl, on.pin) == (2 << 30, MIB, cost_aware, 300, ("mllm",))
    assert (on.budget, on.asked, on.priority) == (2 * MIB, 0.5, {"joint": -1})
    assert PoolSettings.of(DEFAULT | words, CpuDevice()).host_budget == 0

    class Gpu(SimulatedDevice):
        host_share = CudaDevice.host_share

    assert PoolSettings.of(DEFAULT, Gpu(MIB)).host_budget == int(0.4 * CpuDevice().total)


def test_every_wrong_key_is_named_at_once() -> None:
    wrong = {
        "policy": "fifo", "ttl": -1, "host_budget": "much", "pin": "mllm", "priority": {"bird": 1}, "max_models": 0, "preallocate": "yes",
        "optimize": 3, "min_residency": "long", "lease_timeout": None, "reserve": True,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        fgvr.load_config().derive({f"runtime.{key}": value for key, value in wrong.items()})
    assert [key for key in wrong if f"runtime.{key}" not in str(caught.value)] == []
    with pytest.raises(ConfigError, match="lru, cost_aware"):
        fgvr.load_config("runtime.policy=fifo")


def test_a_value_that_a_notebook_would_change_is_refused_by_name() -> None:
    cfg = fgvr.load_config("models=fake", "runtime.device=simulated:1GiB")
    with pytest.raises(ConfigError, match=r"runtime\.ttl=soon: must be a number"):
        cfg.derive({"runtime.ttl": "soon"})
    with pytest.raises(ValueError, match="frozen"):
        cfg.runtime.ttl = 5


def test_new_settings_apply_to_the_living_pool() -> None:
    close_shared()
    try:
        words = ["models=fake", "runtime.device=simulated:1GiB"]
        pool = fgvr.shared_pool(fgvr.load_config(*words))
        assert (pool.settings.policy, pool.status().host_budget, pool.device.optimize) == (lru, 0, True)
        fgvr.shared_pool(fgvr.load_config(*words, "runtime.optimize=false"))
        assert not pool.device.optimize, "of what is loaded from now on"
        pool.pin("encoder")
        again = fgvr.shared_pool(fgvr.load_config(*words, "runtime.policy=cost_aware", "runtime.host_budget=64MiB", "runtime.ttl=60"))
        assert again is pool
        assert (pool.settings.policy, pool.status().host_budget, pool.settings.ttl) == (cost_aware, 64 * MIB, 60.0)
        assert [m.role for m in pool.status() if m.pinned] == ["encoder"]  # set by hand, and nothing else was asked for
        fgvr.shared_pool(fgvr.load_config(*words, "runtime.pin=[mllm]", "runtime.priority.encoder=2"))
        assert {m.role: (m.pinned, m.priority) for m in pool.status() if m.role != "joint"} == {"encoder": (False, 2), "mllm": (True, 0)}
    finally:
        close_shared()
