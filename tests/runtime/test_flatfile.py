"""The CPU's disk tier: a model that takes turns leaves its weights in a nameless file and is mapped back, bit for bit."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import shutil
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

import fgvr
from fgvr.errors import FgvrError, OutOfBudget, RuntimeConflict
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import clip, flat_layout, flat_weights, flatfile
from fgvr.runtime.loaders.flatfile import FlatFile
from fgvr.runtime.pool import ModelPool, close_shared
from fgvr.types import ModelSpec

from .helpers import state, status, until
from .test_flat_weights import Mixed

MIB = 1 << 20
Part = namedtuple("Part", "mountpoint fstype")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="private mappings are POSIX")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for one on a disk, wherever the tests run."""
    monkeypatch.setattr(psutil, "disk_partitions", lambda all=False: [Part("/", "ext4")])
    return tmp_path / "scratch"


@pytest.fixture
def device(scratch: Path) -> CpuDevice:
    device = CpuDevice()
    device.scratch = scratch
    return device


def placed(module: torch.nn.Module, device: CpuDevice) -> FlatFile:
    movable = flat_weights.place(module, device)
    assert isinstance(movable, FlatFile)
    return movable


def mapped_files(scratch: Path) -> list[str]:
    """Deleted files of that folder which this process holds open or mapped."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    held = [os.readlink(link) for link in links if os.path.islink(link)] + Path("/proc/self/maps").read_text().splitlines()
    return [name for name in held if str(scratch) in name]


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_bits_ties_and_strides_are_kept_through_all_moves(device: CpuDevice) -> None:
    module = Mixed()
    before = {name: tensor.clone() for name, tensor in module.tensors().items()}
    strides = {name: tensor.stride() for name, tensor in module.tensors().items()}
    movable = placed(module, device)
    assert movable.nbytes == 30 + 56 + 96 + 16 + 288 + 120 + 3 + 8, "shared bytes once, nothing between"
    assert (movable.host_needed, movable.host_nbytes, movable.prepare()) == (0, 0, 0)
    for _ in range(3):
        assert movable.park() == movable.nbytes and movable.parked and movable.park() == 0
        assert all(tensor.numel() == 0 for tensor in module.tensors().values())
        assert movable.restore(device) == movable.nbytes and not movable.parked and movable.restore(device) == 0
        for name, tensor in module.tensors().items():
            assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype and tensor.stride() == strides[name], name
            assert tensor.data_ptr() % tensor.element_size() == 0
        assert module.second.weight is module.first.weight
        assert module.part.data_ptr() == module.whole.data_ptr() + 2 * 8 * 4
        assert module.alias.data_ptr() == module.first.bias.data_ptr()


@pytest.mark.parametrize("when", ["before the first parking", "after coming back"])
def test_a_model_that_was_written_to_is_not_parked(device: CpuDevice, when: str) -> None:
    module = torch.nn.BatchNorm1d(3)
    movable = placed(module, device)
    if when == "after coming back":
        movable.park()
        movable.restore(device)
    with torch.inference_mode():
        module(torch.randn(4, 3))  # in training mode its statistics are written
    after = module.running_mean.clone()  # type: ignore[union-attr]
    with pytest.raises(RuntimeConflict, match="was changed"):
        movable.park()
    assert not movable.parked and torch.equal(module.running_mean, after)  # type: ignore[arg-type]


def test_what_is_written_by_mistake_stays_out_of_the_file(device: CpuDevice) -> None:
    module = torch.nn.Linear(4, 4).requires_grad_(False)
    right, movable = module.weight.clone(), placed(module, device)
    movable.park()
    movable.restore(device)
    module.weight.data.numpy()[:] = 7.0  # past every counter
    movable.park()
    movable.restore(device)
    assert torch.equal(module.weight, right)


def test_memory_comes_back_and_what_somebody_keeps_is_told(device: CpuDevice) -> None:
    module = torch.nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    movable, process = placed(module, device), psutil.Process()
    before = process.memory_full_info().uss
    assert movable.park() == 64 * MIB
    assert 60 * MIB < before - process.memory_full_info().uss < 68 * MIB
    movable.restore(device)
    module.weight.sum()
    kept = module.weight[:2]
    assert movable.park() == 0 and movable.kept == 64 * MIB, "one mapping: a part of it holds all"
    del kept
    assert movable.kept == 0
    movable.restore(device)
    module.weight.sum()
    before = process.memory_full_info().uss
    assert movable.park() == 64 * MIB
    assert 60 * MIB < before - process.memory_full_info().uss < 68 * MIB


@linux
def test_the_file_has_no_name_and_goes_with_the_model(device: CpuDevice, scratch: Path) -> None:
    module = torch.nn.Linear(64, 64)
    movable = placed(module, device)
    movable.park()
    movable.restore(device)
    assert list(scratch.iterdir()) == [] and len(mapped_files(scratch)) >= 2, "open and mapped, but in no folder"
    del movable, module
    gc.collect()
    assert mapped_files(scratch) == []


def test_a_disk_without_room_is_not_filled(device: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(64, 64, bias=False)
    right, movable = module.weight.clone(), placed(module, device)
    usage = shutil.disk_usage(device.scratch or ".")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2 * movable.nbytes - 1))
    with pytest.raises(RuntimeConflict, match="too little beside"):
        movable.park()
    assert not movable.parked and torch.equal(module.weight, right)
    monkeypatch.undo()


@linux
def test_a_disk_that_fills_up_while_writing_leaves_the_model_whole(device: CpuDevice, scratch: Path, monkeypatch) -> None:
    module = torch.nn.Linear(64, 64, bias=False)
    right, movable = module.weight.clone(), placed(module, device)

    class Full:
        """A file on a disk that has no room for the last byte."""

        def __init__(self, file) -> None:
            self._file = file

        def __getattr__(self, name: str):
            return getattr(self._file, name)

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    made = flatfile.tempfile.TemporaryFile
    with monkeypatch.context() as patched:
        patched.setattr(flatfile.tempfile, "TemporaryFile", lambda **where: Full(made(**where)))
        with pytest.raises(OSError, match="No space left"):
            movable.park()
    assert not movable.parked and torch.equal(module.weight, right) and mapped_files(scratch) == []
    movable.park()
    movable.restore(device)
    assert torch.equal(module.weight, right)


@pytest.mark.parametrize("way", ["park", "restore"])
def test_an_interrupt_leaves_all_or_nothing(device: CpuDevice, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    module = Mixed()
    before = {name: tensor.clone() for name, tensor in module.tensors().items()}
    movable = placed(module, device)
    if way == "restore":
        movable.park()
    calls = iter([False, True])
    with monkeypatch.context() as patched:
        inner = flatfile.FlatFile._empty if way == "park" else flat_layout.Slot.view

        def strike(*args):
            result = inner(*args)
            if next(calls, False) is (way == "restore"):
                raise KeyboardInterrupt
            return result

        patched.setattr(*((FlatFile, "_empty", strike) if way == "park" else (flat_layout.Slot, "view", strike)))
        with pytest.raises(KeyboardInterrupt):
            movable.park() if way == "park" else movable.restore(device)
    assert movable.parked and all(tensor.numel() == 0 for tensor in module.tensors().values())
    movable.restore(device)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.tensors().items())


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_folder_in_memory_or_without_permission_is_no_disk_tier(
    device: CpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    mounts = [Part("/", "ext4"), Part(str(tmp_path), kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all=False: mounts)
    assert flat_weights.place(torch.nn.Linear(2, 2), device) is None
    device.scratch = tmp_path / "file" / "below"
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        assert flat_weights.place(torch.nn.Linear(2, 2), device) is None
    assert "loaded again each time" in caplog.text


def test_windows_and_a_cpu_without_scratch_have_no_disk_tier(device: CpuDevice, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(flatfile.sys, "platform", "win32")
        device.scratch = tmp_path / "other"
        assert flat_weights.place(torch.nn.Linear(2, 2), device) is None
    device.scratch = None
    assert flat_weights.place(torch.nn.Linear(2, 2), device) is None


def test_another_folder_applies_live(tmp_path: Path) -> None:
    words = ["models=fake", "runtime.device=cpu", f"paths.home={tmp_path}"]
    close_shared()
    try:
        for written, folder in (("auto", tmp_path / "scratch"), ("/else/where", Path("/else/where")), ("null", None)):
            assert fgvr.shared_pool(fgvr.load_config(*words, f"runtime.scratch={written}")).device.scratch == folder
    finally:
        close_shared()


# --- in a pool ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(device: CpuDevice) -> Iterator[ModelPool]:
    pool = ModelPool(device, budget=1 << 30)
    yield pool
    pool.close()


def spec_of(role: str, folder: Path) -> ModelSpec:
    return ModelSpec(role, {"encoder": "clip", "mllm": "qwen", "joint": "blip"}[role], str(folder), batch_size=2)  # type: ignore[arg-type]


def ask(pool: ModelPool, role: str, images: list[Image.Image]) -> list:
    with pool.lease(role) as model:
        if role == "encoder":
            return [*model.encode(images).ravel(), *model.encode_text(["a red bird"]).ravel()]
        if role == "joint":
            return list(model.match(images, ["a red bird"] * len(images)))
        scores = model.score(images, ["look"] * len(images), [["red", "blue"]] * len(images))
        return [*model.generate(images, ["look"] * len(images), max_new_tokens=4), *(s.log_likelihoods for s in scores)]


@pytest.mark.parametrize("role", ["encoder", "mllm", "joint"])
def test_a_model_that_takes_turns_is_loaded_twice_and_then_mapped(
    pool: ModelPool, scratch: Path, role: str, request: pytest.FixtureRequest, images: list[Image.Image]
) -> None:
    spec = spec_of(role, request.getfixturevalue(f"{role}_folder"))
    key = pool.register(spec)
    first = ask(pool, role, images)
    size = status(pool, spec).bytes
    assert pool.evict(key, park=True) == size and state(pool, spec) == "absent", "once is no turn: nothing is written"
    assert ask(pool, role, images) == first and pool.loads[role] == 2
    for _ in range(3):
        assert pool.evict(key, park=True) == size
        parked = status(pool, spec)
        assert (parked.state, parked.host_bytes, pool.status().used) == ("parked", 0, 0)
        assert ask(pool, role, images) == first
        assert status(pool, spec).bytes == size == pool.status().used
    assert pool.loads[role] == 2, "three times it was mapped"
    pool.evict(key)
    assert state(pool, spec) == "absent" and ask(pool, role, images) == first and pool.loads[role] == 3


def turned(pool: ModelPool, spec: ModelSpec) -> None:
    """Has gone and come back, so that it takes turns."""
    pool.register(spec)
    for _ in range(2):
        pool.evict(spec.role, park=True)
        with pool.lease(spec.role):
            pass


@linux
def test_a_ttl_parks_first_and_then_frees_the_disk(pool: ModelPool, scratch: Path, encoder_folder: Path) -> None:
    spec = spec_of("encoder", encoder_folder)
    turned(pool, spec)
    pool._housekeeping.set_ttl(0.2)
    with pool.lease("encoder"):
        pass
    seen = set()
    assert until(lambda: seen.add(state(pool, spec)) or state(pool, spec) == "absent")
    assert "parked" in seen and until(lambda: mapped_files(scratch) == []), "nothing of the file is left"


@linux
def test_eviction_by_hand_cleanup_and_the_end_of_the_pool_free_the_disk(pool: ModelPool, scratch: Path, encoder_folder: Path) -> None:
    spec = spec_of("encoder", encoder_folder)
    ways = (lambda: pool.evict("encoder"), pool.cleanup, pool.close)
    for way in ways:
        turned(pool, spec)
        pool.evict("encoder", park=True)
        assert state(pool, spec) == "parked" and mapped_files(scratch)
        way()
        assert state(pool, spec) == "absent" and mapped_files(scratch) == []


def test_a_full_disk_costs_a_load_and_nothing_else(
    pool: ModelPool, encoder_folder: Path, images: list[Image.Image], monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of("encoder", encoder_folder)
    turned(pool, spec)
    first = ask(pool, "encoder", images)
    pool.evict("encoder")
    ask(pool, "encoder", images)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=0))
    size = status(pool, spec).bytes
    with caplog.at_level(logging.WARNING):
        assert pool.evict("encoder", park=True) == size
    assert state(pool, spec) == "absent" and "could not be parked and is dropped" in caplog.text
    assert ask(pool, "encoder", images) == first


def test_a_tensor_that_somebody_keeps_stays_charged_and_is_told(pool: ModelPool, encoder_folder: Path) -> None:
    spec = spec_of("encoder", encoder_folder)
    turned(pool, spec)
    pool.evict("encoder", park=True)
    with pool.lease("encoder") as encoder:
        kept = next(encoder.model._module.parameters()).detach()
    size = status(pool, spec).bytes
    assert pool.evict("encoder", park=True) == 0, "one mapping: a part of it holds all"
    assert pool.status().used == pytest.approx(size, rel=0.05) and "did not come back" in repr(pool.status())
    del kept
    with pool.lease("encoder"):
        assert pool.status().used == size + pool._ledger.find("encoder").work


def test_a_mapping_that_fails_is_a_clear_error_and_then_a_load(
    pool: ModelPool, encoder_folder: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("encoder", encoder_folder)
    turned(pool, spec)
    first, loads = ask(pool, "encoder", images), pool.loads["encoder"]
    pool.evict("encoder", park=True)

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(flatfile.mmap, "mmap", refuse)
        with pytest.raises(FgvrError, match="Input/output error"), pool.lease("encoder"):
            pass
    assert (state(pool, spec), pool.status().used) == ("failed", 0)
    pool.reset("encoder")
    assert state(pool, spec) == "absent", "the copy is given up"
    assert ask(pool, "encoder", images) == first and pool.loads["encoder"] == loads + 1


def test_memory_that_runs_out_while_mapping_and_computing_leaves_right_answers_or_clear_errors(
    pool: ModelPool, encoder_folder: Path, joint_folder: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    """Four threads, two models that take turns, until memory has run out 12 times in a mapping and 8 times in a forward pass."""
    specs = {"encoder": spec_of("encoder", encoder_folder), "joint": spec_of("joint", joint_folder)}
    for spec in specs.values():
        turned(pool, spec)
    right = {role: ask(pool, role, images) for role in specs}
    left, lock, rng = {"map": 12, "forward": 8}, threading.Lock(), random.Random(0)

    def exhausted(place: str) -> None:
        with lock:
            hit = left[place] > 0 and rng.random() < 0.5
            left[place] -= hit
        if hit:
            raise MemoryError(f"injected into a {place}")

    mapped, encoded = flatfile.mmap.mmap, clip.ClipEncoder.encode

    def mapping(*args, **kwargs):
        exhausted("map")
        return mapped(*args, **kwargs)

    def encoding(self, pictures):
        exhausted("forward")
        return encoded(self, pictures)

    monkeypatch.setattr(flatfile.mmap, "mmap", mapping)
    monkeypatch.setattr(clip.ClipEncoder, "encode", encoding)
    outcomes: list[bool] = []

    def work(number: int) -> None:
        mine, deadline = random.Random(number), time.monotonic() + 120
        while any(left.values()) and time.monotonic() < deadline:
            role = mine.choice(("encoder", "joint"))
            pool.reset(role)
            try:
                outcomes.append(ask(pool, role, images) == pytest.approx(right[role], abs=1e-5))  # halved batches round otherwise
                pool.evict(role, park=True)
            except OutOfBudget as error:
                outcomes.append("ran out of memory" in str(error))
            except RuntimeConflict:  # leased by another
                pass

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, number) for number in range(4)]:
            done.result(150)
    assert left == {"map": 0, "forward": 0} and all(outcomes) and len(outcomes) >= 4
    assert not pool._admission.queued and not pool._ledger.grants
    assert all(e.mover is None and e.drain_for is None and not e.leases for e in pool._ledger.entries.values())
    gc.collect()
    pool._lifecycle.recheck_unreturned()  # as the next lease would: another thread's error may have held the tensors that were just leaving
    resident = [m for m in pool.status() if m.state == "resident"]
    assert pool.status().used == sum(m.bytes for m in resident)
    for entry in pool._ledger.entries.values():
        if entry.model is not None:
            assert entry.model.movable.parked == (entry.state in ("parked", "failed")) and entry.model.movable.kept == 0
    pool.close()
    del entry
    assert mapped_files(scratch) == [] if sys.platform == "linux" else True


def test_restoring_takes_no_construct_lock(pool: ModelPool, encoder_folder: Path) -> None:
    from fgvr.runtime.locks import CONSTRUCT

    turned(pool, spec_of("encoder", encoder_folder))
    pool.evict("encoder", park=True)
    with CONSTRUCT.read():  # somebody computes
        began = time.monotonic()
        with pool.lease("encoder", timeout=5.0):
            assert time.monotonic() - began < 5.0
