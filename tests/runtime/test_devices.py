"""Devices: what they count, when they refuse, how exhaustion is recognised."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from fgvr.errors import ConfigError
from fgvr.runtime.devices import pick_device
from fgvr.runtime.devices.base import held_by_others, is_oom
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice

MIB = 1 << 20


def test_a_simulated_device_refuses_with_the_real_class_and_gets_memory_back() -> None:
    import torch

    device = SimulatedDevice(100 * MIB)
    block = device.allocate(60 * MIB)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        device.allocate(50 * MIB)
    assert device.is_oom(caught.value)
    del block
    assert (device.allocated(), device.reserved(), device.peak()) == (0, 60 * MIB, 60 * MIB)
    device.empty_cache()
    assert (device.reserved(), device.free()) == (0, 100 * MIB)
    device.limit(10 * MIB)
    with pytest.raises(torch.OutOfMemoryError):
        device.allocate(11 * MIB)


@pytest.mark.parametrize(
    ("error", "oom"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("[metal::malloc] Attempting to allocate 9000000000 bytes"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_exhaustion_is_recognised_in_every_librarys_words(error: Exception, oom: bool) -> None:
    assert is_oom(error) is oom
    wrapped = RuntimeError("loading failed")
    wrapped.__cause__ = error
    assert is_oom(wrapped) is oom


def test_the_cpu_honours_its_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{300 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{200 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {50 * MIB}\n")
    device = CpuDevice(cgroup=tmp_path)
    assert (device.total, device.free()) == (300 * MIB, 150 * MIB)
    (tmp_path / "memory.max").write_text("max\n")
    assert device.total == psutil.virtual_memory().total


def test_the_cpu_counts_this_process(tmp_path: Path) -> None:
    device = CpuDevice(cgroup=tmp_path)
    assert 0 < device.allocated() <= device.peak() * 1.1
    assert 0 <= held_by_others(device) < device.total
    device.empty_cache()


def test_a_device_is_picked_by_name() -> None:
    assert pick_device("cpu").name == "cpu"
    assert pick_device("simulated:24GiB").total == 24 << 30
    for name in ("tpu", "cpu:1", "cuda:x", "simulated", "simulated:lots"):
        with pytest.raises(ConfigError, match="auto, cpu, cuda"):
            pick_device(name)


@pytest.mark.gpu
def test_a_gpu_gives_back_what_a_model_took() -> None:
    import torch

    device = pick_device("cuda")
    before = device.allocated()
    tensor = torch.zeros(64 * MIB, dtype=torch.uint8, device=device.torch_name)
    assert device.allocated() - before == 64 * MIB
    del tensor
    device.synchronize()
    device.empty_cache()
    assert device.allocated() == before
