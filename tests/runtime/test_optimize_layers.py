"""Optimised layers change nothing but speed: each against what its library computes."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fgvr.runtime.devices import cpu
from fgvr.runtime.devices.cpu import CpuDevice, is_amd
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders import decoding, optimize_layers
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec

from .conftest import MIB
from .helpers import module_of

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def quick_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize_layers, "onednn_is_ahead", lambda: True)
    monkeypatch.setattr(optimize_layers, "_SMALL", 0)


def plain_device() -> CpuDevice:
    device = CpuDevice()
    device.optimize = False
    return device


def quick(module: nn.Module) -> nn.Module:
    return optimize_layers.optimize(module.eval().requires_grad_(False), CpuDevice())


def kinds(module: nn.Module) -> set[type]:
    return {type(part) for part in module.modules()}


# --- whole models ------------------------------------------------------------------------------------------------------------


def both(spec: ModelSpec) -> tuple[Any, Any]:
    plain, quicker = (find_loader(spec).load(spec, device) for device in (plain_device(), CpuDevice()))
    assert nn.Linear in kinds(module_of(plain)) and nn.Linear not in kinds(module_of(quicker))
    assert [p.shape for p in module_of(plain).parameters()] == [p.shape for p in module_of(quicker).parameters()]
    assert plain.nbytes == quicker.nbytes and plain.fingerprint == quicker.fingerprint
    return plain, quicker


def test_embeddings_are_the_same(encoder_folder: Path, images: list[Image.Image]) -> None:
    plain, quicker = both(ModelSpec("encoder", "clip", str(encoder_folder)))
    np.testing.assert_allclose(quicker.encode(images * 4), plain.encode(images * 4), atol=1e-5)
    np.testing.assert_allclose(quicker.encode_text(["a red bird", "wing"]), plain.encode_text(["a red bird", "wing"]), atol=1e-5)


def test_likelihoods_and_answers_are_the_same(mllm_folder: Path, images: list[Image.Image]) -> None:
    plain, quicker = both(ModelSpec("mllm", "transformers", str(mllm_folder)))
    texts = [["red wing", "a blue bird"]] * 3
    for one, other in zip(*(model.score(images, ["which bird"] * 3, texts) for model in (plain, quicker)), strict=True):
        assert other.log_likelihoods == pytest.approx(one.log_likelihoods, abs=1e-4)
    assert quicker.generate(images, ["describe"] * 3, max_new_tokens=4) == plain.generate(images, ["describe"] * 3, max_new_tokens=4)


def test_matches_are_the_same(joint_folder: Path, images: list[Image.Image]) -> None:
    plain, quicker = both(ModelSpec("joint", "blip", str(joint_folder)))
    texts = ["a red bird", "white", "a bird with a long brown wing"]
    np.testing.assert_allclose(quicker.match(images, texts), plain.match(images, texts), atol=1e-5)


def test_a_model_for_a_gpu_or_in_bfloat16_keeps_its_layers() -> None:
    class Gpu(SimulatedDevice):
        torch_name = "cuda:0"

    assert type(optimize_layers.optimize(nn.Linear(2, 2), Gpu(MIB))) is nn.Linear
    assert type(quick(nn.Linear(2, 2).bfloat16())) is nn.Linear


# --- layer by layer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5), (40, 5), (3, 7, 5), (0, 5), (1100, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_has_any_number_of_rows(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x, turned = nn.Linear(5, 6, bias=bias), torch.randn(shape), torch.randn(5, 40).t()
    with torch.inference_mode():
        wanted = layer(x), layer(turned)
        torch.testing.assert_close((quick(layer)(x), layer(turned)), wanted)


def test_small_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize_layers, "_SMALL", 31)
    assert type(quick(nn.Linear(5, 5))) is nn.Linear and type(quick(nn.Linear(5, 6))) is not nn.Linear


def test_attention_with_a_mask_with_other_queries_and_with_weights() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x, one = torch.randn(3, 12, 8), torch.randn(3, 1, 8)
    mask = torch.full((12, 12), float("-inf")).triu(1)
    asks = [
        ((x, x, x), {"need_weights": False}),
        ((x, x, x), {"need_weights": False, "attn_mask": mask}),
        ((one, x, x), {"need_weights": False}),
        ((x, x, x), {"need_weights": True}),
        ((x, x, x), {"need_weights": False, "key_padding_mask": torch.arange(12).expand(3, -1) > 8}),
        ((x, x, x), {"need_weights": False, "attn_mask": mask < 0}),  # of True and False, which hides where another attention sees
        ((x[0], x[0], x[0]), {"need_weights": False}),
    ]
    with torch.inference_mode():
        wanted = [layer(*args, **options) for args, options in asks]
        found = [quick(layer)(*args, **options) for args, options in asks]
    for (seen, weights), (right, others) in zip(found, wanted, strict=True):
        torch.testing.assert_close(seen, right)
        assert (weights is None) == (others is None)


def test_a_model_that_is_dropped_gives_its_memory_back_at_once(mllm_folder: Path) -> None:
    spec = ModelSpec("mllm", "transformers", str(mllm_folder))
    gc.disable()
    try:
        model = find_loader(spec).load(spec, CpuDevice())
        weight = weakref.ref(next(module_of(model).parameters()))  # type: ignore[attr-defined]
        del model
        assert weight() is None
    finally:
        gc.enable()


# --- where ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker,wanted", [("AuthenticAMD", True), ("HygonGenuine", True), ("GenuineIntel", False), ("", False)])
def test_onednn_is_asked_where_it_is_ahead(monkeypatch, tmp_path, maker: str, wanted: bool) -> None:
    monkeypatch.undo()
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {maker}\n")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    assert optimize_layers.onednn_is_ahead() == (wanted and torch.backends.mkl.is_available())


def test_windows_tells_the_maker_too(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "absent")
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD")
    assert is_amd()


# --- the sums over the vocabulary ------------------------------------------------------------------------------------------------


def test_log_probabilities_are_summed_in_parts(monkeypatch) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    wanted = logits.log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
    for size in (1, 4 * 11 * 4, 1 << 22):
        monkeypatch.setattr(decoding, "LOGIT_BYTES", size)
        torch.testing.assert_close(decoding._log_probs(logits, targets), wanted)
