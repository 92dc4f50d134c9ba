"""Allocator settings: presets, what was asked for, what the environment already says, and coming too late."""

from __future__ import annotations

import platform

import pytest

import fgvr
from fgvr.errors import ConfigError, RuntimeConflict
from fgvr.runtime import allocator
from fgvr.runtime.allocator import apply, choose, in_force
from fgvr.runtime.policy import cost_aware
from fgvr.runtime.pool import close_shared

HIGH, LOW, FALLBACK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO", "PYTORCH_ENABLE_MPS_FALLBACK"
CUDA = "PYTORCH_ALLOC_CONF"
MMAP, TRIM = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"


def settings(kind: str, asked: dict | None = None, environ: dict | None = None, *, imported: bool = False) -> dict[str, str]:
    """The environment after `apply`."""
    environ = dict(environ or {})
    apply(kind, asked or {}, environ, imported=imported)
    return environ


def test_each_device_has_its_preset() -> None:
    assert settings("cuda") == {CUDA: "expandable_segments:True,garbage_collection_threshold:0.6"}
    assert settings("mps") == {HIGH: "0.7", LOW: "0.5", FALLBACK: "1"}
    assert settings("simulated") == {}


def test_one_setting_can_be_changed() -> None:
    assert settings("cuda", {"expandable_segments": False, "max_split_size_mb": 512}) == {
        CUDA: "expandable_segments:False,garbage_collection_threshold:0.6,max_split_size_mb:512"
    }
    assert settings("mps", {"high_watermark": 0.9, "fallback": False}) == {HIGH: "0.9", LOW: "0.5", FALLBACK: "0"}
    assert settings("simulated", {"high_watermark": 0.9}) == {}


@pytest.mark.parametrize("name", [CUDA, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_a_variable_of_the_user_is_never_touched(name: str, caplog) -> None:
    own = {name: "backend:cudaMallocAsync"}
    assert settings("cuda", {}, own) == own
    assert not caplog.messages
    assert settings("cuda", {"expandable_segments": False}, own) == own
    assert "wins over runtime.allocator" in caplog.text


def test_the_low_watermark_follows_a_high_one_below_it() -> None:
    """PyTorch does not start with low above high, and its own low is 1.4: setting high alone is the known trap."""
    assert settings("mps", {}, {HIGH: "0.3"}) == {HIGH: "0.3", LOW: "0.3", FALLBACK: "1"}
    assert settings("mps", {"high_watermark": 0.4})[LOW] == "0.4"
    for asked, environ in (({"high_watermark": 0.4, "low_watermark": 0.5}, {}), ({}, {HIGH: "0.4", LOW: "0.5"})):
        with pytest.raises(ConfigError, match="above high"):
            settings("mps", asked, environ)


def test_no_limit_at_all_is_only_an_explicit_choice_and_warned(caplog) -> None:
    settings("mps")
    assert not caplog.messages
    assert settings("mps", {"high_watermark": 0.0}) == {HIGH: "0.0", LOW: "0.5", FALLBACK: "1"}
    assert "no upper limit" in caplog.text
    caplog.clear()
    assert settings("mps", {}, {HIGH: "0"})[HIGH] == "0"
    assert "no upper limit" in caplog.text


def test_after_torch_is_imported_a_preset_is_a_warning_and_a_wish_a_conflict(caplog) -> None:
    assert settings("cuda", imported=True) == {}
    assert f"{CUDA}=expandable_segments:True" in caplog.text
    with pytest.raises(RuntimeConflict, match=rf"restart, or set first: {CUDA}=expandable_segments:False"):
        settings("cuda", {"expandable_segments": False}, imported=True)
    already = settings("cuda", {"expandable_segments": False})
    caplog.clear()
    assert settings("cuda", {"expandable_segments": False}, already, imported=True) == already
    assert settings("simulated", {"high_watermark": 0.5}, imported=True) == {}
    assert not caplog.messages


@pytest.mark.parametrize(
    "asked",
    [{"watermark": 1}, {"high_watermark": 3}, {"low_watermark": "half"}, {"fallback": "sometimes"}, {"garbage_collection_threshold": 60},
     {"max_split_size_mb": 4}, {"max_split_size_mb": "big"}, {"expandable_segments": 2}, {"mmap_threshold": "1GiB"},
     {"mmap_threshold": "some"}, {"trim_threshold": 0}, {"trim_threshold": "2GiB"},
     {"trim_threshold": "2MiB", "mmap_threshold": 0}],
)  # fmt: skip
def test_what_pytorch_would_refuse_is_refused_with_the_configuration(asked: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(asked))):
        choose("cpu", asked, {})
    with pytest.raises(ConfigError, match="not a number"):
        choose("mps", {}, {HIGH: "much"})


def test_the_doctor_is_told_what_is_in_force_and_who_set_it() -> None:
    environ = settings("mps", {"low_watermark": 0.4})
    assert [str(s) for s in in_force("mps", environ)] == [f"{HIGH}=0.7 (preset)", f"{LOW}=0.4 (environment)", f"{FALLBACK}=1 (preset)"]
    assert in_force("cpu", environ) == in_force("cuda", environ) == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_a_cpu_gives_freed_blocks_back_at_once(python, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (MMAP, TRIM):
        monkeypatch.delenv(name, raising=False)  # a run in this process sets them for its children
    assert settings("cpu") == settings("cpu", imported=True) == {MMAP: str(8 << 20), TRIM: str(32 << 20)}
    assert settings("cpu", {"mmap_threshold": 0}) == {}
    assert settings("cpu", {"mmap_threshold": "1MiB", "trim_threshold": "2MiB"}) == {MMAP: str(1 << 20), TRIM: str(2 << 20)}
    assert settings("cpu", {"mmap_threshold": "1MiB"}, {MMAP: "5"}) == {MMAP: "5", TRIM: str(32 << 20)}
    assert "wins over runtime.allocator" in caplog.text
    # The process itself is told, not only its children: what it frees is gone, where glibc would keep 24 MiB of blocks below 32 MiB.
    code = (
        "import ctypes, psutil; from fgvr.runtime.allocator import apply; apply('cpu', {'mmap_threshold': %r}, {});"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; libc.free.argtypes = [ctypes.c_void_p];"
        "libc.free(libc.malloc(25 << 20));"  # after which glibc, left alone, would keep blocks of this size
        "before = psutil.Process().memory_info().rss;"
        "blocks = [libc.malloc(1 << 20) for _ in range(24)]; wall = libc.malloc(1000);"
        "[ctypes.memset(block, 1, 1 << 20) for block in blocks]; [libc.free(block) for block in blocks];"
        "print(psutil.Process().memory_info().rss - before)"
    )
    assert int(python("-c", code % "1MiB").stdout) < 2 << 20
    keeps, trims = (code.replace("{'mmap_threshold': %r}", f"{{'trim_threshold': {size!r}}}") for size in ("32MiB", "1MiB"))
    assert int(python("-c", keeps.replace("wall = libc.malloc(1000)", "0")).stdout) > 20 << 20
    assert int(python("-c", trims.replace("wall = libc.malloc(1000)", "0")).stdout) < 2 << 20
    assert int(python("-c", code % 0).stdout) > 20 << 20


def test_a_pool_that_has_had_a_model_keeps_its_allocator(intercept) -> None:
    """Of any kind: on a CPU the keys of CUDA and MPS would change nothing, silently, and glibc's would change under the models."""
    told: list[dict] = []
    intercept(allocator, "apply", lambda _, kind, asked: told.append(asked))
    words = ["models=fake", "runtime.device=simulated:1GiB", "runtime.allocator.mmap_threshold=2MiB"]
    again = [*words[:2], "runtime.allocator.mmap_threshold=2097152", "runtime.policy=cost_aware", "runtime.allocator.high_watermark=0.7"]
    close_shared()
    try:
        pool = fgvr.shared_pool(fgvr.load_config(*words[:2]))
        assert fgvr.shared_pool(fgvr.load_config(*words)) is pool, "nothing was loaded yet"
        with pool.lease("encoder"):
            pass
        told.clear()
        for change in ("mmap_threshold=1MiB", "trim_threshold=1MiB", "expandable_segments=false", "high_watermark=0.9"):
            with pytest.raises(RuntimeConflict, match=rf"restart for runtime\.allocator\.{change}"):
                fgvr.shared_pool(fgvr.load_config(*words, f"runtime.allocator.{change}"))
        with pytest.raises(RuntimeConflict, match=r"mmap_threshold=null \(it was 2MiB\)"):
            fgvr.shared_pool(fgvr.load_config(*words[:2]))
        assert not told, "refused before anything is changed"
        pool.evict("encoder")
        with pytest.raises(RuntimeConflict, match="allocator"):
            fgvr.shared_pool(fgvr.load_config(*words[:2]))
        assert fgvr.shared_pool(fgvr.load_config(*again)) is pool, "the same in other words, and a preset"
        assert pool.settings.policy is cost_aware
    finally:
        close_shared()


def test_settings_come_before_torch(python) -> None:
    """The whole way: configuration, pool; torch is not imported yet."""
    code = (
        "import os, sys; from fgvr.runtime.devices.simulated import SimulatedDevice; SimulatedDevice.allocator = 'cuda';"
        "pool = fgvr.shared_pool(fgvr.load_config('runtime.device=simulated:1GiB', 'runtime.allocator.max_split_size_mb=64'));"
        "print(os.environ['PYTORCH_ALLOC_CONF'], 'torch' in sys.modules, 'mlx.core' in sys.modules)"
    )
    answer = python("-c", "import fgvr; " + code)
    assert answer.stdout.split() == ["expandable_segments:True,garbage_collection_threshold:0.6,max_split_size_mb:64", "False", "False"], (
        answer
    )


def test_planning_for_mlx_imports_no_tensor_library(python) -> None:
    code = "import sys; from fgvr.cli import main; code = main(sys.argv[1:]); print(code, {'torch', 'mlx.core'} & set(sys.modules))"
    for words in (["models=qwen2_5_vl_7b_mlx", "models/encoder=tiny"], ["models/mllm=mlx", "runtime.device=mlx"]):
        answer = python("-c", code, "mode=plan", "runtime.budget=18GiB", *words)
        assert "0 set()" in answer.stdout, answer


def test_the_doctor_shows_the_allocator(monkeypatch) -> None:
    from fgvr.runtime.checkup import machine
    from fgvr.runtime.devices.simulated import SimulatedDevice
    from fgvr.runtime.pool import ModelPool

    class Mps(SimulatedDevice):
        name = allocator = "mps"

    def shown(device):
        return next(f for f in machine(ModelPool(device, budget=1 << 29)) if f.topic == "allocator")

    assert shown(SimulatedDevice(1 << 30)).detail == "nothing to set"
    monkeypatch.setenv(HIGH, "0.7")
    monkeypatch.setenv(LOW, "0.5")
    monkeypatch.delenv(FALLBACK, raising=False)
    assert shown(Mps(1 << 30)).detail == f"{HIGH}=0.7 (preset), {LOW}=0.5 (preset)"
    monkeypatch.setenv(HIGH, "0.0")
    ill = shown(Mps(1 << 30))
    assert not ill.well and "unset" in ill.cure
