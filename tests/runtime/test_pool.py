"""The pool's surface: names, status, plan, and the one pool of the process."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fgvr.errors import ConfigError, RuntimeConflict
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool, close_shared, shared
from fgvr.runtime.pool_settings import PoolSettings
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .conftest import ENCODER, MIB, MLLM, PoolMaker
from .helpers import EQUALLY_BIG, state


def test_an_unknown_name_lists_the_known_ones(pool: ModelPool) -> None:
    with pytest.raises(ConfigError, match="mllm, encoder, joint"), pool.lease("qwen"):
        pass
    with pytest.raises(ConfigError, match="clip, timm, transformers"):
        pool_of = ModelPool(SimulatedDevice(MIB), budget=MIB)
        pool_of.register(ModelSpec("mllm", "gpt", "x"))


def test_registering_a_role_anew_repoints_it_and_the_old_model_yields(make_pool: PoolMaker) -> None:
    pool = make_pool(budget=75 * MIB)
    with pool.lease("mllm"):
        pass
    assert pool.register(EQUALLY_BIG) == EQUALLY_BIG.key
    with pool.lease("mllm"):
        assert [state(pool, s) for s in (MLLM, EQUALLY_BIG)] == ["absent", "resident"]
    assert pool.register(replace(EQUALLY_BIG, batch_size=2)) == EQUALLY_BIG.key  # no part of the key
    with pytest.raises(RuntimeConflict, match="bfloat16"):
        pool.register(replace(EQUALLY_BIG, dtype="bfloat16"))
    assert pool.loads["mllm"] == 2


def test_status_is_a_table_in_a_terminal_and_in_a_notebook(pool: ModelPool) -> None:
    with pool.lease("mllm"):
        pass
    status = pool.status()
    assert len(status) == 3
    assert status[0].hits == 0 and status[0].loads == 1
    assert MLLM.key in repr(status) and "40.0 MiB" in repr(status)
    assert "<table>" in status._repr_html_() and MLLM.key in pool._repr_html_()


def test_the_log_says_what_is_loaded_reused_and_evicted(make_pool: PoolMaker, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(host_budget=50 * MIB, loader=FakeLoader(movable=True, work=0))
    free: list[bool] = []

    class Listening(logging.Handler):
        """Whoever writes a line somewhere slow must not hold up the pool."""

        def emit(self, record: logging.LogRecord) -> None:
            with ThreadPoolExecutor(1) as other:
                free.append(other.submit(pool.status).result(5) is not None)

    listening = Listening()
    logging.getLogger("fgvr").addHandler(listening)
    try:
        with caplog.at_level("DEBUG", logger="fgvr"):
            for role in ("encoder", "mllm", "encoder"):
                with pool.lease(role):
                    pass
            pool.evict("encoder", park=True)
            with pool.lease("encoder", "mllm"):
                pass
            pool.evict("mllm")
    finally:
        logging.getLogger("fgvr").removeHandler(listening)
    assert all(free) and len(free) == len(caplog.messages)
    encoder, mllm = ENCODER.key, MLLM.key
    lines = [m for m in caplog.messages if m.startswith(("loading", "reusing", "evicting"))]
    assert lines == [
        f"loading {encoder} (from encoder 30MiB, about 30.0 MiB)",
        f"loading {mllm} (from mllm 40MiB, about 40.0 MiB)",
        f"reusing {encoder}",
        f"evicting {encoder} (parked): 70.0 MiB before, 40.0 MiB after, 30.0 MiB of 30.0 MiB came back",
        f"loading {encoder} (from where it was parked, about 30.0 MiB)",
        f"reusing {mllm}",
        f"evicting {mllm}: 70.0 MiB before, 30.0 MiB after, 40.0 MiB of 40.0 MiB came back",
    ]
    caplog.clear()
    with caplog.at_level("INFO", logger="fgvr"), pool.lease("encoder"):
        assert not caplog.messages


def test_a_plan_loads_nothing(pool: ModelPool) -> None:
    plan = pool.plan()
    assert plan.fits and plan.needed == 93 * MIB
    assert not pool.plan("mllm", ModelSpec("encoder", "fake", "huge 2GiB")).fits
    assert sum(pool.loads.values()) == 0


def test_the_shared_pool_is_one_and_takes_new_settings_live() -> None:
    def settings(budget: int = 100, timeout: float = 5.0, asked: str | None = None) -> PoolSettings:
        return PoolSettings(budget=budget * MIB, lease_timeout=timeout, asked=asked)

    close_shared()
    try:
        with pytest.raises(ConfigError, match="no shared pool"):
            shared()
        with ThreadPoolExecutor(8) as threads:
            pools = set(threads.map(lambda _: id(shared(lambda: ModelPool(SimulatedDevice(1000 * MIB), settings()))), range(16)))
        assert len(pools) == 1
        shared().configure(settings(budget=50, timeout=1.0), device=SimulatedDevice(1000 * MIB))
        assert (shared().budget, shared().settings.lease_timeout) == (50 * MIB, 1.0)
        shared().configure(settings(budget=60, asked="auto"))
        assert shared().budget == 60 * MIB
        shared().configure(settings(budget=61, asked="auto"))
        assert shared().budget == shared().settings.budget == 60 * MIB  # others hold a little less just now
        with pytest.raises(RuntimeConflict, match="simulated"):
            shared().configure(settings(timeout=9.0), device=SimulatedDevice(2000 * MIB))
        assert shared().settings.lease_timeout == 5.0, "refused whole"
    finally:
        close_shared()


def test_importing_the_pool_imports_no_tensor_library() -> None:
    code = "import sys, fgvr.runtime.pool; sys.exit(bool({'torch', 'transformers', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
