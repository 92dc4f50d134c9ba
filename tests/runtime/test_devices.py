"""Devices: what they count, when they refuse, how exhaustion is recognised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fgvr.errors import ConfigError
from fgvr.runtime.devices import pick_device
from fgvr.runtime.devices.base import held_by_others, is_oom
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.cuda import CudaDevice
from fgvr.runtime.devices.mlx import MlxDevice
from fgvr.runtime.devices.mlx_memory import MlxAllocator
from fgvr.runtime.devices.mps import MpsDevice
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


# --- the CPU -----------------------------------------------------------------------------------------------------------------


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


def cpu(mount: Path, membership: str) -> CpuDevice:
    (mount / "membership").write_text(membership)
    return CpuDevice(cgroup=mount, membership=mount / "membership")


def test_the_cpu_honours_its_control_group(tmp_path: Path) -> None:
    write(tmp_path, memory__max=300 * MIB, memory__current=200 * MIB, memory__stat=f"anon 5\ninactive_file {50 * MIB}")
    device = cpu(tmp_path, "0::/\n")
    assert (device.total, device.free()) == (300 * MIB, 150 * MIB)
    write(tmp_path, memory__high=250 * MIB)
    assert (device.total, device.free()) == (250 * MIB, 100 * MIB), "above high the kernel slows us down"
    write(tmp_path, memory__max="max", memory__high="max")
    assert device.total == psutil.virtual_memory().total


def test_each_level_of_nested_groups_counts(tmp_path: Path) -> None:
    write(tmp_path / "slice" / "job", memory__max=200 * MIB, memory__current=20 * MIB)
    write(tmp_path / "slice", memory__max=300 * MIB, memory__current=290 * MIB)
    write(tmp_path, memory__max="max")
    device = cpu(tmp_path, "0::/slice/job/step\n")  # the leaf itself has no limit, not even a folder
    assert device.total == 200 * MIB
    assert device.free() == 10 * MIB, "the neighbours in our slice have taken the rest"


def test_version_1_groups_are_found_by_their_own_path(tmp_path: Path) -> None:
    unlimited = 9223372036854771712
    write(tmp_path / "memory", memory__limit_in_bytes=unlimited, memory__usage_in_bytes=1000 * MIB)
    group = write(tmp_path / "memory" / "batch" / "7", memory__limit_in_bytes=400 * MIB, memory__usage_in_bytes=100 * MIB)
    write(group, memory__stat=f"inactive_file 1\nhierarchical_memory_limit 419430400\ntotal_inactive_file {40 * MIB}")
    device = cpu(tmp_path, "9:name=systemd:/x\n4:cpu,memory:/batch/7\n0::/\n")
    assert (device.total, device.free()) == (400 * MIB, 340 * MIB)
    write(group, memory__stat=f"hierarchical_memory_limit {150 * MIB}")  # a parent outside this container
    assert (device.total, device.free()) == (150 * MIB, 50 * MIB)
    write(group, memory__limit_in_bytes=unlimited, memory__stat=f"hierarchical_memory_limit {unlimited}")
    assert device.total == psutil.virtual_memory().total


def test_in_a_container_the_hosts_path_is_not_there_and_the_mount_is_the_group(tmp_path: Path) -> None:
    write(tmp_path / "memory", memory__limit_in_bytes=400 * MIB, memory__usage_in_bytes=100 * MIB)
    assert cpu(tmp_path, "4:memory:/docker/0123\n").free() == 300 * MIB
    assert CpuDevice(cgroup=tmp_path / "nowhere", membership=tmp_path / "nowhere").total == psutil.virtual_memory().total


def test_the_cpu_counts_this_process(tmp_path: Path) -> None:
    device = CpuDevice(cgroup=tmp_path)
    for _ in range(5):  # a process that starts meanwhile maps the same libraries, and what is shared is no longer ours alone
        before = device.allocated()
        block = bytearray(b"x") * (64 * MIB)
        if (grown := device.allocated() - before) == pytest.approx(64 * MIB, rel=0.1):
            break
        block = bytearray()
    else:
        pytest.fail(f"64 MiB more were counted as {grown:,} bytes")
    assert device.allocated() <= device.peak() * 1.1
    assert 0 <= held_by_others(device) < device.total
    del block
    device.empty_cache()
    assert device.allocated() - before < 8 * MIB


# --- MPS, MLX, CUDA: what stands in for the libraries counts as they document it -------------------------------------------------


class StandInMps:
    """`torch.mps` as PyTorch 2.15 documents it."""

    def __init__(self, recommended: int) -> None:
        self.recommended, self.current, self.cache, self.fraction, self.synchronized = recommended, 0, 0, 1.7, 0

    def recommended_max_memory(self) -> int:
        return self.recommended

    def current_allocated_memory(self) -> int:
        return self.current

    def driver_allocated_memory(self) -> int:
        return self.current + self.cache

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        if not isinstance(fraction, float) or not 0 <= fraction <= 2:
            raise TypeError(fraction)
        self.fraction = fraction

    def empty_cache(self) -> None:
        self.cache = 0

    def synchronize(self) -> None:
        self.synchronized += 1


class StandInMlx(MlxAllocator):
    """An MLX in use with `live` and `kept` bytes."""

    def __init__(self, live: int = 0, kept: int = 0) -> None:
        super().__init__()
        self.live, self.kept, self.wired = live, kept, 0

    core = property(lambda self: SimpleNamespace(  # type: ignore[assignment]
        get_active_memory=lambda: self.live, get_cache_memory=lambda: self.kept, get_peak_memory=lambda: self.live,
        set_memory_limit=lambda size: setattr(self, "memory_limit", size), set_cache_limit=lambda size: setattr(self, "cache_limit", size),
        set_wired_limit=lambda size: setattr(self, "wired", size), synchronize=lambda: None, clear_cache=lambda: setattr(self, "kept", 0),
        metal=SimpleNamespace(is_available=lambda: True), device_info=lambda: {"max_recommended_working_set_size": 700 * MIB},
    ))  # fmt: skip


def test_mps_counts_pytorch_and_mlx_in_one_memory() -> None:
    mps, mlx = StandInMps(1000 * MIB), StandInMlx(live=100 * MIB, kept=50 * MIB)
    device = MpsDevice(mps, mlx)
    mps.current, mps.cache = 200 * MIB, 30 * MIB
    assert (device.total, device.allocated(), device.reserved()) == (1000 * MIB, 300 * MIB, 350 * MIB)
    assert device.free() <= 650 * MIB
    device.empty_cache()
    assert (mps.cache, mlx.kept, device.reserved()) == (0, 0, 300 * MIB)
    mps.current = 0
    assert (device.allocated(), device.peak()) == (100 * MIB, 300 * MIB)
    assert device.exact and device.torch_name == "mps"


def test_mps_refuses_beyond_the_budget_and_never_beyond_the_recommended_working_set() -> None:
    mps, mlx = StandInMps(1000 * MIB), StandInMlx()
    device = MpsDevice(mps, mlx)
    for size, fraction in ((250 * MIB, 0.25), (5000 * MIB, 1.0)):
        device.limit(size)
        assert mps.fraction == fraction
    device.limit(0)
    assert 0 < mps.fraction < 1e-6, "0 would mean no limit"
    device.limit(800 * MIB)
    assert (mlx.memory_limit, mlx.cache_limit, mlx.wired) == (800 * MIB, 100 * MIB, 700 * MIB)
    assert device.is_oom(RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB)")) and mps.synchronized == 1
    assert not device.is_oom(RuntimeError("size mismatch"))


def test_mlx_counts_its_own_arrays_where_nobody_counts_pytorchs() -> None:
    mlx = StandInMlx(live=100 * MIB, kept=50 * MIB)
    alone, beside = MlxDevice(CpuDevice(), mlx), MlxDevice(MpsDevice(StandInMps(1000 * MIB), mlx), mlx)
    assert (alone.allocated(), alone.reserved(), alone.peak(), alone.torch_name) == (100 * MIB, 150 * MIB, 100 * MIB, "cpu")
    assert alone.total == CpuDevice().total and alone.free() > 0
    assert (beside.allocated(), beside.total, beside.torch_name) == (100 * MIB, 1000 * MIB, "mps")


def test_a_limit_set_before_mlx_is_imported_holds_after(python) -> None:
    code = (
        "import sys; from fgvr.runtime.devices import pick_device; from fgvr.runtime.devices.mlx_memory import MLX; "
        "device = pick_device('mlx');"
        "device.limit(123 << 20); print(device.total > 0, device.allocated(), 'mlx.core' in sys.modules); MLX.begin();"
        "import mlx.core as mx; print(mx.get_memory_limit() >> 20); a = mx.zeros((1 << 20,)); mx.eval(a); print(device.allocated() >> 20);"
        "del a; print(device.allocated() >> 20, device.reserved() >> 20); device.empty_cache(); print(device.reserved() >> 20)"
    )
    pytest.importorskip("mlx", reason="pip install 'fgvr[mlx]'")
    answer = python("-c", code)
    assert answer.stdout.split() == "True 0 False 123 4 0 4 0".split(), answer.stderr


def test_cuda_caps_the_process_at_the_budget() -> None:
    asked = []
    stand_in = SimpleNamespace(cuda=SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda index: SimpleNamespace(total_memory=1000 * MIB),
        set_per_process_memory_fraction=lambda fraction, index: asked.append((fraction, index)),
    ))  # fmt: skip
    device = CudaDevice(1, stand_in)
    device.limit(250 * MIB)
    device.limit(5000 * MIB)
    assert asked == [(0.25, 1), (1.0, 1)]
    with pytest.raises(ConfigError, match="2 found"):
        CudaDevice(2, stand_in)


def test_a_device_is_picked_by_name() -> None:
    assert pick_device("cpu").name == "cpu"
    assert pick_device("simulated:24GiB").total == 24 << 30
    assert pick_device("auto").name in ("cpu", "cuda:0", "mps")
    for name in ("tpu", "cpu:1", "mps:0", "mlx:1", "cuda:x", "simulated", "simulated:lots"):
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
