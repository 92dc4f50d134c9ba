"""The configuration's terms: read, refused with every wrong key named, applied to a living pool."""

from __future__ import annotations

import pytest

import fgvr
from fgvr import assembly
from fgvr.errors import ConfigError
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.cuda import CudaDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.policy import cost_aware, lru
from fgvr.runtime.pool import close_shared
from fgvr.runtime.terms import terms

from .conftest import MIB

DEFAULT = assembly.to_dict(fgvr.load_config())["runtime"]


def test_the_shipped_defaults_are_the_plain_pool() -> None:
    on = terms(DEFAULT)
    assert (on.policy, on.host_budget, on.preallocate, on.ttl, on.min_residency, on.pin, on.priority) == (
        lru,
        None,
        False,
        None,
        0.0,
        (),
        {},
    )
    assert on.host_bytes(CpuDevice()) == on.host_bytes(SimulatedDevice(MIB)) == 0


def test_sizes_have_units_and_only_devices_with_own_memory_have_a_host_tier() -> None:
    on = terms(
        DEFAULT
        | {
            "host_budget": "2GiB",
            "reserve": "1MiB",
            "policy": "cost_aware",
            "ttl": 300,
            "pin": ["mllm"],
            "priority": {"joint": -1, "mllm": 0},
        }
    )
    assert (on.host_budget, on.reserve, on.policy, on.ttl, on.pin, on.priority) == (
        2 << 30,
        MIB,
        cost_aware,
        300.0,
        ("mllm",),
        {"joint": -1},
    )
    assert on.host_bytes(SimulatedDevice(MIB)) == 2 << 30
    assert on.host_bytes(CpuDevice()) == 0

    class Gpu(SimulatedDevice):
        host_share = CudaDevice.host_share

    assert terms(DEFAULT).host_bytes(Gpu(MIB)) == int(0.4 * CpuDevice().total)


def test_every_wrong_key_is_named_at_once() -> None:
    wrong = {
        "policy": "fifo", "ttl": -1, "host_budget": "much", "pin": "mllm", "priority": {"bird": 1}, "max_models": 0, "preallocate": "yes",
        "optimize": 1, "min_residency": "long", "lease_timeout": None, "reserve": True,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        terms(DEFAULT | wrong)
    assert [key for key in wrong if f"runtime.{key}" not in str(caught.value)] == []
    with pytest.raises(ConfigError, match="lru, cost_aware"):
        fgvr.load_config("runtime.policy=fifo")


def test_new_terms_apply_to_the_living_pool() -> None:
    close_shared()
    try:
        words = ["models=fake", "runtime.device=simulated:1GiB"]
        pool = assembly.shared_pool(fgvr.load_config(*words))
        assert (pool.policy, pool.status().host_budget, pool.device.optimize) == (lru, 0, True)
        assembly.shared_pool(fgvr.load_config(*words, "runtime.optimize=false"))
        assert not pool.device.optimize, "of what is loaded from now on"
        pool.pin("encoder")
        again = assembly.shared_pool(fgvr.load_config(*words, "runtime.policy=cost_aware", "runtime.host_budget=64MiB", "runtime.ttl=60"))
        assert again is pool
        assert (pool.policy, pool.status().host_budget, pool._housekeeping.ttl) == (cost_aware, 64 * MIB, 60.0)
        assert [m.role for m in pool.status() if m.pinned] == ["encoder"]  # set by hand, and nothing else was asked for
        assembly.shared_pool(fgvr.load_config(*words, "runtime.pin=[mllm]", "runtime.priority.encoder=2"))
        assert {m.role: (m.pinned, m.priority) for m in pool.status() if m.role != "joint"} == {"encoder": (False, 2), "mllm": (True, 0)}
    finally:
        close_shared()
