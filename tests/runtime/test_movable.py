"""Weights that move: views of one buffer, ties kept, bits kept, memory really given back."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from fgvr.errors import RuntimeConflict
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders import blip, clip, transformers
from fgvr.runtime.loaders.movable import ALIGNMENT, place
from fgvr.types import ModelSpec

MIB = 1 << 20


class Mixed(torch.nn.Module):
    """Types of four sizes, a tie by object, a tie by storage, a transposed and an empty tensor, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = torch.nn.Parameter(torch.randn(3, 5, dtype=torch.float16))
        self.wide = torch.nn.Parameter(torch.randn(7, dtype=torch.float64))
        self.first = torch.nn.Linear(6, 4)
        self.second = torch.nn.Linear(6, 4, bias=False)
        self.second.weight = self.first.weight
        self.whole = torch.nn.Parameter(torch.randn(9, 8))
        self.turned = torch.nn.Parameter(torch.randn(5, 6).t())
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("alias", self.first.bias.data)
        self.register_buffer("scalar", torch.tensor(3, dtype=torch.int64), persistent=False)
        self.requires_grad_(False)

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict([*self.named_parameters(), *self.named_buffers()])


def storages(module: torch.nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers()) if t.numel()}


def test_every_tensor_is_an_equal_view_of_one_buffer_through_all_moves() -> None:
    device, module = SimulatedDevice(MIB), Mixed()
    before = {name: tensor.clone() for name, tensor in module.tensors().items()}
    strides = {name: tensor.stride() for name, tensor in module.tensors().items()}
    movable = place(module, device)
    assert movable is not None
    for step in (lambda: 0, movable.park, lambda: movable.restore(device), movable.park):
        step()
        assert len(storages(module)) == 1
        for name, tensor in module.tensors().items():
            assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype and tensor.stride() == strides[name], name
            assert tensor.data_ptr() % tensor.element_size() == 0


def test_ties_stay_ties_and_shared_bytes_count_once() -> None:
    device, module = SimulatedDevice(MIB), Mixed()
    unique = 30 + 56 + 96 + 16 + 288 + 120 + 3 + 8
    movable = place(module, device)
    assert movable is not None and unique <= movable.nbytes <= unique + 9 * ALIGNMENT
    for step in (movable.park, lambda: movable.restore(device)):
        step()
        assert module.second.weight is module.first.weight
        assert module.alias.data_ptr() == module.first.bias.data_ptr()


def test_the_device_counts_the_buffer_and_gets_it_back() -> None:
    device, module = SimulatedDevice(MIB), Mixed()
    movable = place(module, device)
    assert movable is not None and device.allocated() == movable.nbytes and (movable.host_nbytes, movable.parked) == (0, False)
    first = next(iter(storages(module)))
    assert movable.park() == movable.nbytes and device.allocated() == 0
    assert movable.parked and movable.host_nbytes == movable.nbytes and movable.park() == 0
    (host,) = storages(module)
    assert movable.restore(device) == movable.nbytes == device.allocated() and movable.restore(device) == 0
    assert first != host and host not in storages(module)
    movable.park()
    assert storages(module) == {host}  # the same copy: nothing was copied back
    movable.restore(device)
    del movable, module
    gc.collect()
    assert device.allocated() == 0


def anonymous() -> int:
    """Bytes of this process that no file backs; the kernel takes back pages of files whenever it likes."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)  # macOS does not say


def test_parking_really_returns_main_memory_on_a_device_that_computes_there() -> None:
    device, module = SimulatedDevice(1000 * MIB), torch.nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    movable = place(module, device)
    assert movable is not None
    movable.park()
    movable.restore(device)  # the host copy exists from here on
    gc.collect()
    resident = anonymous()
    movable.park()
    assert 48 * MIB < resident - anonymous() < 80 * MIB


def test_no_room_leaves_the_module_whole_or_parked() -> None:
    small, module = SimulatedDevice(100), Mixed()
    before = {name: tensor.clone() for name, tensor in module.tensors().items()}
    with pytest.raises(torch.OutOfMemoryError):
        place(module, small)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.tensors().items()) and small.allocated() == 0
    movable = place(module, SimulatedDevice(MIB))
    assert movable is not None
    movable.park()
    with pytest.raises(torch.OutOfMemoryError):
        movable.restore(small)
    assert movable.parked and all(torch.equal(tensor, before[name]) for name, tensor in module.tensors().items())


@pytest.mark.parametrize("change", ["written", "replaced", "added"])
def test_a_model_that_was_changed_is_not_parked(change: str) -> None:
    module = torch.nn.BatchNorm1d(3)
    movable = place(module, SimulatedDevice(MIB))
    assert movable is not None
    if change == "written":
        with torch.inference_mode():
            module(torch.randn(4, 3))  # in training mode its statistics are
    elif change == "replaced":
        module.running_mean = torch.ones(3)
    else:
        module.register_buffer("more", torch.ones(3))
    with pytest.raises(RuntimeConflict):
        movable.park()
    assert not movable.parked


def test_tensors_without_plain_bytes_are_refused() -> None:
    with pytest.raises(RuntimeConflict, match="weight"):
        place(torch.nn.Linear(2, 2, device="meta"), SimulatedDevice(MIB))


def test_the_cpu_has_no_host_tier() -> None:
    assert place(torch.nn.Linear(2, 2), CpuDevice()) is None


@pytest.mark.parametrize("role", ["encoder", "mllm", "joint"])
def test_answers_are_the_same_bits_after_parking_and_after_loading_again(
    role: str, encoder_folder: Path, mllm_folder: Path, joint_folder: Path, images: list[Image.Image]
) -> None:
    loader, folder = {
        "encoder": (clip.LOADER, encoder_folder),
        "mllm": (transformers.LOADER, mllm_folder),
        "joint": (blip.LOADER, joint_folder),
    }[role]
    spec = ModelSpec(role, {"encoder": "clip", "mllm": "transformers", "joint": "blip"}[role], str(folder))

    def answers(model) -> list[np.ndarray]:
        if role == "encoder":
            return [model.encode(images), model.encode_text(["a red bird", "a bird with blue wing . and black tail"])]
        if role == "joint":
            return [model.match(images, ["a red bird"] * 3)]
        scores = model.score(images, ["describe"] * 3, [["red", "a blue bird"]] * 3)
        texts = model.generate(images, ["describe"] * 3, max_new_tokens=5)
        return [np.array([s.log_likelihoods for s in scores]), np.array([str(t) for t in texts])]

    device = SimulatedDevice(100 * MIB)
    model = loader.load(spec, CpuDevice())
    model.place(CpuDevice())
    assert model.movable is None
    expected = answers(model)
    model.place(device)
    assert model.movable is not None and model.movable.nbytes == pytest.approx(model.nbytes, rel=0.2)  # padding weighs in tiny tensors
    for _ in range(2):
        assert all(map(np.array_equal, answers(model), expected))
        model.movable.park()
        assert device.allocated() == 0
        model.movable.restore(device)
    del model
    gc.collect()
    assert device.allocated() == 0
    again = loader.load(spec, device)
    again.place(device)
    assert all(map(np.array_equal, answers(again), expected))
