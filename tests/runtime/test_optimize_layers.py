"""Quicker layers change nothing but speed: each against what its library computes, in float32 and where the processor has it bfloat16."""

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

from fgvr.runtime.devices import fast_dtype
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.fast_dtype import BF16_FLAGS, cpu_flags, is_amd
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders import optimize_layers, scoring
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.loaders.clip import LOADER, ClipEncoder
from fgvr.types import ModelSpec

from .conftest import MIB

pytestmark = pytest.mark.skipif(not optimize_layers.has_operator(), reason="this PyTorch was built without oneDNN")
DTYPES = ["float32", *(["bfloat16"] if cpu_flags() & set(BF16_FLAGS) else [])]


@pytest.fixture(autouse=True)
def quick_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize_layers, "by_onednn", lambda dtype: True)
    monkeypatch.setattr(optimize_layers, "_SMALL", 0)


def plain_device() -> CpuDevice:
    device = CpuDevice()
    device.optimize = False
    return device


def quick(module: nn.Module, *, steady: bool = True) -> nn.Module:
    return optimize_layers.optimize(module.eval().requires_grad_(False), CpuDevice(), steady=steady)


def kinds(module: nn.Module) -> set[type]:
    return {type(part) for part in module.modules()}


# --- whole models ------------------------------------------------------------------------------------------------------------


def both(spec: ModelSpec) -> tuple[Any, Any]:
    plain, quicker = (find_loader(spec).load(spec, device) for device in (plain_device(), CpuDevice()))
    assert nn.Linear in kinds(plain._module) and nn.Linear not in kinds(quicker._module)
    assert [p.shape for p in plain._module.parameters()] == [p.shape for p in quicker._module.parameters()]
    assert plain.nbytes == quicker.nbytes and plain.fingerprint == quicker.fingerprint
    return plain, quicker


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_are_the_same(encoder_folder: Path, images: list[Image.Image], dtype: str) -> None:
    plain, quicker = both(ModelSpec("encoder", "clip", str(encoder_folder), dtype=dtype))
    apart = 1e-5 if dtype == "float32" else 0.02
    np.testing.assert_allclose(quicker.encode(images * 4), plain.encode(images * 4), atol=apart)
    np.testing.assert_allclose(quicker.encode_text(["a red bird", "wing"]), plain.encode_text(["a red bird", "wing"]), atol=apart)


@pytest.mark.parametrize("dtype", DTYPES)
def test_likelihoods_are_the_same(mllm_folder: Path, images: list[Image.Image], dtype: str) -> None:
    plain, quicker = both(ModelSpec("mllm", "qwen", str(mllm_folder), dtype=dtype))
    texts = [["red wing", "a blue bird"]] * 3
    for one, other in zip(*(model.score(images, ["which bird"] * 3, texts) for model in (plain, quicker)), strict=True):
        assert other.log_likelihoods == pytest.approx(one.log_likelihoods, abs=1e-4 if dtype == "float32" else 0.5)
    if dtype == "float32":
        assert quicker.generate(images, ["describe"] * 3, max_new_tokens=4) == plain.generate(images, ["describe"] * 3, max_new_tokens=4)


def test_matches_are_the_same(joint_folder: Path, images: list[Image.Image]) -> None:
    plain, quicker = both(ModelSpec("joint", "blip", str(joint_folder)))
    texts = ["a red bird", "white", "a bird with a long brown wing"]
    np.testing.assert_allclose(quicker.match(images, texts), plain.match(images, texts), atol=1e-5)


def test_a_model_for_a_gpu_keeps_its_layers() -> None:
    class Gpu(SimulatedDevice):
        torch_name = "cuda:0"

    assert type(optimize_layers.optimize(nn.Linear(2, 2), Gpu(MIB))) is nn.Linear


# --- layer by layer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5), (40, 5), (3, 7, 5), (0, 5), (1100, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steady", [True, False])
def test_a_product_has_any_number_of_rows(shape: tuple[int, ...], bias: bool, steady: bool) -> None:
    torch.manual_seed(0)
    layer, x, turned = nn.Linear(5, 6, bias=bias), torch.randn(shape), torch.randn(5, 40).t()
    with torch.inference_mode():
        wanted = layer(x), layer(turned)
        torch.testing.assert_close((quick(layer, steady=steady)(x), layer(turned)), wanted)


def test_whatever_the_rows_onednn_meets_only_seven_numbers_of_them() -> None:
    """It keeps a compiled kernel for each: without blocks three hundred questions of all lengths took .6 GiB."""
    met = set()
    for rows in range(9, 5000):
        blocks = optimize_layers._blocks(rows)
        assert sum(blocks) == rows and all(block >= 8 for block in blocks[:-1])
        met |= {block for block in blocks if block >= 8}
    assert met == {8, 16, 32, 64, 128, 256, 512}


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


@pytest.mark.parametrize("tokens", [12, 300])
def test_attention_in_steps_is_the_fused_one(tokens: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8).bfloat16() for _ in range(3))
    mask = torch.full((tokens, tokens), float("-inf")).triu(1).bfloat16()
    wanted = nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask.float())
    torch.testing.assert_close(optimize_layers._attend(q, k, v, mask).float(), wanted, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "layer,sides",
    [
        (nn.Conv2d(3, 6, 4, stride=4), (8, 12)),
        (nn.Conv2d(3, 6, 4, stride=4), (9, 12)),
        (nn.Conv2d(3, 6, 4, stride=2), (8, 12)),
        (nn.Conv2d(3, 6, 4, stride=4, padding=2), (8, 12)),
        (nn.Conv2d(3, 6, 2, stride=2, dilation=2), (8, 12)),
        (nn.Conv2d(4, 6, (2, 4), stride=(2, 4), bias=False), (8, 12)),
        (nn.Conv2d(4, 6, 4, stride=4, groups=2), (8, 12)),
        (nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4), bias=False), (2, 4, 4)),
        (nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4)), (4, 8, 4)),
    ],
    ids=str,
)
def test_patches_are_convolutions(layer: nn.Module, sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, layer.in_channels, *sides)  # type: ignore[arg-type]
    with torch.inference_mode():
        wanted = layer(x), layer(x[:0])
        torch.testing.assert_close((quick(layer)(x), layer(x[:0])), wanted)


def test_an_image_tower_that_is_read_at_its_class_token_computes_no_other_at_the_end(encoder_folder: Path) -> None:
    spec = ModelSpec("encoder", "clip", str(encoder_folder))
    spared: ClipEncoder = LOADER.load(spec, CpuDevice())
    visual: Any = spared._module.visual
    rows: list[int] = []
    for block in visual.transformer.resblocks:
        block.mlp.register_forward_hook(lambda module, args, found: rows.append(found.shape[1]))
    spared.encode([Image.new("RGB", (40, 30))])
    tokens = visual.positional_embedding.shape[0]
    assert rows == [tokens] * (len(rows) - 1) + [1] and tokens > 1


def test_a_tower_that_is_averaged_keeps_its_last_block(encoder_folder: Path) -> None:
    from fgvr.runtime.loaders import clip_tower

    visual: Any = LOADER.load(ModelSpec("encoder", "clip", str(encoder_folder)), plain_device())._module.visual
    visual.pool_type = "avg"
    before = kinds(visual)
    clip_tower.spare_last_block(visual)
    assert kinds(visual) == before
    visual.pool_type = "tok"
    clip_tower.spare_last_block(visual)
    assert len(kinds(visual) - before) == 1


def test_a_model_that_is_dropped_gives_its_memory_back_at_once(mllm_folder: Path) -> None:
    spec = ModelSpec("mllm", "qwen", str(mllm_folder))
    gc.disable()
    try:
        model = find_loader(spec).load(spec, CpuDevice())
        weight = weakref.ref(next(model._module.parameters()))  # type: ignore[attr-defined]
        del model
        assert weight() is None
    finally:
        gc.enable()


# --- where ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker,flags,wanted", [
    ("AuthenticAMD", "avx2", (True, False)), ("HygonGenuine", "avx2", (True, False)), ("GenuineIntel", "avx512f amx_bf16", (False, True)),
    ("AuthenticAMD", "avx512_bf16", (True, True)), ("", "", (False, False)),
])  # fmt: skip
def test_onednn_is_asked_where_it_is_ahead(monkeypatch, tmp_path, maker: str, flags: str, wanted: tuple[bool, bool]) -> None:
    monkeypatch.undo()
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {maker}\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(fast_dtype, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert (optimize_layers.by_onednn(torch.float32), optimize_layers.by_onednn(torch.bfloat16)) == wanted
    assert not optimize_layers.by_onednn(torch.float16)
    monkeypatch.setattr(optimize_layers, "has_operator", lambda: False)
    assert not optimize_layers.by_onednn(torch.float32)


def test_windows_tells_the_maker_too(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(fast_dtype, "_CPUINFO", tmp_path / "absent")
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD")
    assert is_amd()


# --- the sums over the vocabulary ------------------------------------------------------------------------------------------------


def test_log_probabilities_are_summed_in_parts(monkeypatch) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    wanted = logits.log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
    for size in (1, 4 * 11 * 4, 1 << 22):
        monkeypatch.setattr(scoring, "LOGIT_BYTES", size)
        torch.testing.assert_close(scoring._log_probs(logits, targets), wanted)
