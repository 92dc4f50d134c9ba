"""Model folders: sizes and identities from files alone, and errors that say what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec
from fgvr.types.memory import Role


@pytest.fixture
def encoder(encoder_folder: Path, tmp_path: Path) -> ModelSpec:
    """A copy that may be damaged."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    for file in encoder_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return ModelSpec("encoder", "clip", str(folder))


def fingerprint(spec: ModelSpec) -> str:
    return find_loader(spec).fingerprint(spec)


def test_a_fingerprint_changes_with_weights_preprocessing_and_dtype_and_with_nothing_else(encoder: ModelSpec) -> None:
    folder, first = Path(encoder.source), fingerprint(encoder)
    (folder / "README.md").write_text("words")
    assert fingerprint(encoder) == first
    assert fingerprint(replace(encoder, batch_size=3)) == first
    assert fingerprint(replace(encoder, dtype="bfloat16")) != first
    config = json.loads((folder / files.Path("open_clip_config.json")).read_text())
    config["preprocess_cfg"]["mean"] = [0.4] * 3
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert fingerprint(encoder) != (second := first)
    weights = bytearray((folder / "open_clip_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    assert fingerprint(encoder) not in (first, second)


def test_large_weights_are_told_apart_by_samples(encoder: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HASH_WHOLE", 0)
    first, file = fingerprint(encoder), Path(encoder.source) / "open_clip_model.safetensors"
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    assert fingerprint(encoder) != first


def test_a_fingerprint_does_not_depend_on_where_the_folder_lies(encoder: ModelSpec, encoder_folder: Path) -> None:
    assert fingerprint(encoder) == fingerprint(replace(encoder, source=str(encoder_folder)))


@pytest.mark.parametrize("source", ["nowhere/at-all", "/no/such/folder"])
@pytest.mark.parametrize("role", ["encoder", "mllm"])
def test_a_missing_model_says_where_it_was_looked_for_and_what_works(role: str, source: str) -> None:
    spec = ModelSpec(role, {"encoder": "clip", "mllm": "transformers"}[role], source)
    for ask in (find_loader(spec).check, find_loader(spec).estimate, find_loader(spec).fingerprint):
        with pytest.raises(ModelLoadError) as caught:
            ask(spec)
        text = str(caught.value)
        assert all(word in text for word in (source, "looked in", f"models.{role}.source=FOLDER", "models=photos (photographs, no MLLM)"))
        assert ("hf download nowhere/at-all" in text) == (source == "nowhere/at-all")


def test_missing_files_are_named(encoder: ModelSpec, tmp_path: Path) -> None:
    (Path(encoder.source) / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"open_clip_model.safetensors missing in"):
        find_loader(encoder).check(encoder)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    spec = ModelSpec("mllm", "transformers", str(tmp_path / "half"))
    with pytest.raises(ModelLoadError, match=r"tokenizer.json or vocab.json"):
        find_loader(spec).check(spec)


def test_an_interrupted_download_is_recognised_before_anything_is_loaded(encoder: ModelSpec) -> None:
    file = Path(encoder.source) / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="damaged"):
        find_loader(encoder).estimate(encoder)


def test_a_cached_hub_repository_is_found_without_the_network(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "abc123").symlink_to(encoder_folder)
    spec = ModelSpec("encoder", "clip", "ViT-B-32/openai")
    find_loader(spec).check(spec)
    assert find_loader(spec).estimate(spec) < 1 << 20
    assert files.cached_snapshot("timm/vit_base_patch32_clip_224.openai", "main") is not None
    assert files.cached_snapshot("timm/other") is None


def test_the_real_7b_is_sized_from_its_config_alone(tmp_path: Path) -> None:
    spec = ModelSpec("mllm", "transformers", "Qwen/Qwen2.5-VL-7B-Instruct")
    loader = find_loader(spec)
    assert loader.estimate(spec) == 8_292_166_656 * 2
    assert loader.estimate(replace(spec, dtype="float32")) == 8_292_166_656 * 4
    assert loader.estimate(replace(spec, quantization="nf4")) < 8 << 30
    assert loader.work_bytes(replace(spec, batch_size=1)) < loader.work_bytes(spec)
    config = Path("../shared/data/qwen2_5_vl_7b/config.json")
    if config.is_file():
        (tmp_path / "config.json").write_bytes(config.read_bytes())
        assert loader.estimate(replace(spec, source=str(tmp_path))) == 8_292_166_656 * 2


def test_planning_imports_no_tensor_library_and_is_quick(encoder_folder: Path, mllm_folder: Path) -> None:
    code = f"""
import sys, time
from fgvr.runtime.plan import plan
from fgvr.types import ModelSpec
from fgvr.types.memory import Role
specs = [ModelSpec("encoder", "clip", {str(encoder_folder)!r}), ModelSpec("mllm", "transformers", {str(mllm_folder)!r})]
specs += [ModelSpec("encoder", "clip", "ViT-B-32/openai"), ModelSpec("mllm", "transformers", "Qwen/Qwen2.5-VL-7B-Instruct")]
began = time.process_time()
result = plan(specs, 8 << 30)
assert time.process_time() - began < 0.5
assert not result.fits and any("int4" in line for line in result.advice), result
assert not {{"torch", "transformers", "open_clip"}} & set(sys.modules)
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={"PATH": "/usr/bin"})
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("role", "loader", "name"),
    [
        ("encoder", "clip", "open_clip_config.json"),
        ("encoder", "timm", "config.json"),
        ("mllm", "transformers", "config.json"),
        ("joint", "blip", "config.json"),
    ],
)
def test_a_configuration_that_is_no_json_object_is_named(role: Role, loader: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[]")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelLoadError, match=f"{name} is no configuration of a model"):
        find_loader(spec := ModelSpec(role, loader, str(tmp_path))).footprint(spec, CpuDevice)


@pytest.mark.parametrize("source", ["hf-hub:somebody/an-encoder", "FOLDER"])
def test_a_size_that_is_unknown_names_the_cure(source: str, tmp_path: Path) -> None:
    spec = ModelSpec("encoder", "clip", source.replace("FOLDER", str(tmp_path)))
    with pytest.raises(ModelLoadError) as told:
        find_loader(spec).footprint(spec, CpuDevice)
    assert ("hf download somebody/an-encoder (" in str(told.value)) == source.startswith("hf-hub:")
    assert "hf download /" not in str(told.value) and "models.encoder.source=FOLDER" in str(told.value)


@pytest.mark.parametrize(
    ("role", "loader", "name", "key", "value"),
    [
        ("encoder", "clip", "open_clip_config.json", ("model_cfg", "vision_cfg"), "big"),
        ("encoder", "clip", "open_clip_config.json", ("model_cfg", "vision_cfg", "image_size"), []),
        ("joint", "blip", "config.json", ("architectures",), 1),
        ("joint", "blip", "config.json", ("vision_config", "image_size"), "384"),
        ("mllm", "transformers", "config.json", ("num_attention_heads",), 0),
        ("mllm", "transformers", "config.json", ("vision_config", "hidden_size"), None),
        ("mllm", "transformers", "preprocessor_config.json", ("max_pixels",), "many"),
    ],
)
def test_a_value_that_cannot_be_is_named(role: Role, loader: str, name: str, key: tuple[str, ...], value: object, tmp_path: Path) -> None:
    shipped = files.locate(ModelSpec(role, loader, "tiny"))
    assert shipped is not None
    folder = shutil.copytree(shipped, tmp_path / "model")
    changed = config = json.loads((folder / name).read_text())
    for part in key[:-1]:
        changed = changed[part]
    changed[key[-1]] = value
    (folder / name).write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="image_size|no model_cfg|holds blip|no positive whole numbers|image processor"):
        spec = ModelSpec(role, loader, str(folder))
        find_loader(spec).check(spec)
        find_loader(spec).footprint(spec, CpuDevice)


@pytest.mark.parametrize("header", [[], {"a": {"shape": None, "data_offsets": [0, 0]}}, {"a": {"shape": ["x"], "data_offsets": [0, 0]}}])
def test_a_header_that_describes_no_tensors_is_a_damaged_file(header: object, encoder: ModelSpec) -> None:
    text = json.dumps(header).encode()
    (Path(encoder.source) / "open_clip_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ModelLoadError, match=r"is damaged \(.+\); get it again"):
        find_loader(encoder).footprint(encoder, CpuDevice)
