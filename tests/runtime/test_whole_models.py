"""Nothing is half loaded: another family, absent shards and tensors that do not fit are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fgvr
from fgvr import planning
from fgvr.cli import main
from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec
from fgvr.utils.paths import PACKAGE
from tests.runtime.tiny_random import write_encoder, write_joint, write_mllm

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}
ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}


def qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT | ROPE, vision_config=vision))


def qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT | ROPE | {"head_dim": 16}, vision_config=vision))


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**TOWER)))


def smolvlm() -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(text_config=TEXT | {"model_type": "llama", "pad_token_id": 0}, vision_config=TOWER)
    )


FAMILIES = {
    "Qwen2VLForConditionalGeneration": qwen2_vl,
    "Qwen3VLForConditionalGeneration": qwen3_vl,
    "LlavaForConditionalGeneration": llava,
    "SmolVLMForConditionalGeneration": smolvlm,
}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_folder_of_another_family_is_refused_by_name(architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_mllm(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    FAMILIES[architecture]().save_pretrained(folder)
    spec = ModelSpec("mllm", "qwen", str(folder))
    loader = find_loader(spec)
    for look in (loader.check, loader.estimate, lambda spec: loader.load(spec, CpuDevice())):
        with pytest.raises(ModelLoadError, match=rf"holds {architecture} .*loaded as Qwen2_5_VLForConditionalGeneration"):
            look(spec)
    for mode in ("plan", "doctor"):
        assert main([f"mode={mode}", "models=tiny", f"models.mllm.source={folder}", f"paths.home={tmp_path}", "logging.json=true"]) == 3
        said = capsys.readouterr()
        assert architecture in said.out + said.err and "Traceback" not in said.err


def edited(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> Path:
    """The same folder, its tensors changed."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def without(part: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name]


def more(tensors: dict[str, Any]) -> None:
    tensors["model.visual.strange.weight"] = next(iter(tensors.values())).clone()


def cut(part: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.update({name: t[:1].clone() for name, t in tensors.items() if part in name and t.shape[0] > 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("layers.1."), r"missing \(.*layers\.1\..*\.\.\.\)"),
        (more, r"1 unexpected \(.*strange"),
        (cut("o_proj.weight"), r"other shapes|mismatched"),
    ],
)
def test_an_mllm_whose_tensors_do_not_fit_is_refused(change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    spec = ModelSpec("mllm", "qwen", str(edited(write_mllm(tmp_path / "model"), change)))
    with pytest.raises(ModelLoadError, match=said):
        find_loader(spec).load(spec, CpuDevice())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("resblocks.0."), r"missing \(.*resblocks\.0\."),
        (more, r"1 unexpected"),
        (cut("token_embedding"), r"1 mismatched \(token_embedding"),
    ],
)
def test_an_encoder_whose_tensors_do_not_fit_is_refused(change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    folder = edited(write_encoder(tmp_path / "model"), change, "open_clip_model.safetensors")
    spec = ModelSpec("encoder", "clip", str(folder))
    with pytest.raises(ModelLoadError, match=said):
        find_loader(spec).load(spec, CpuDevice())


@pytest.mark.parametrize(
    ("change", "said"),
    [(without("layers.0."), r"missing \(.*layers\.0\."), (more, r"1 unexpected"), (cut("itm_head.weight"), r"1 mismatched \(itm_head")],
)
def test_a_matcher_whose_tensors_do_not_fit_is_refused(change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    spec = ModelSpec("joint", "blip", str(edited(write_joint(tmp_path / "model"), change)))
    with pytest.raises(ModelLoadError, match=said):
        find_loader(spec).load(spec, CpuDevice())


def test_an_encoder_folder_that_describes_none_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 4}}))
    spec = ModelSpec("encoder", "clip", str(folder))
    with pytest.raises(ModelLoadError, match="no encoder in open_clip's form"):
        find_loader(spec).check(spec)


def sharded(folder: Path, *, here: int, of: int) -> Path:
    """A model of several files, some of which are links into nowhere or not there at all."""
    names = [f"model-{i + 1:05d}-of-{of:05d}.safetensors" for i in range(of)]
    (folder / "model.safetensors").rename(folder / names[0])
    for name in names[1:here]:
        shutil.copy(folder / names[0], folder / name)
    for name in names[here : here + 1]:
        (folder / name).symlink_to(folder / "nowhere")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"tensor {name}": name for name in names}}))
    return folder


@pytest.mark.parametrize("mode", ["plan", "doctor"])
def test_shards_that_are_not_there_are_named(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(PACKAGE / "models_tiny" / "mllm", tmp_path / "model")
    sharded(tmp_path / "model", here=1, of=3)
    code = main([f"mode={mode}", "models=tiny", f"models.mllm.source={tmp_path / 'model'}", f"paths.home={tmp_path}", "logging.json=true"])
    said = capsys.readouterr().out
    assert "2 of its weight files are missing" in said and "model-00002-of-00003.safetensors" in said
    assert code == (3 if mode == "doctor" else 0), "a plan is still given: what is missing is said beside it"


@pytest.mark.parametrize(("weights", "said"), [(b"version https://git-lfs.github.com/spec/v1", "damaged"), (b"", "damaged")])
def test_weights_that_are_none_are_found_by_the_doctor(
    weights: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PACKAGE / "models_tiny" / "mllm", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    assert (
        main(["mode=doctor", "models=tiny", f"models.mllm.source={tmp_path / 'model'}", f"paths.home={tmp_path}", "logging.json=true"]) == 3
    )
    assert said in capsys.readouterr().out


def test_the_plan_says_family_and_whether_the_weights_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    here = planning.plan(fgvr.load_config("mode=plan", "models=tiny"))
    assert any("mllm: Qwen2_5_VLForConditionalGeneration (qwen2_5_vl), supported; its weights are here" in fact for fact in here.facts)
    away = planning.plan(fgvr.load_config("mode=plan", "models=qwen2_5_vl_7b"))
    assert any(fact.startswith("mllm: Qwen/Qwen2.5-VL-7B-Instruct is not on this machine") for fact in away.facts)


@pytest.mark.parametrize("kind", ["int8", "nf4", "mlx"])
def test_a_quantised_or_mlx_model_whose_tensors_do_not_fit_is_refused(kind: str, tmp_path: Path) -> None:
    pytest.importorskip({"int8": "torchao", "nf4": "bitsandbytes", "mlx": "mlx_vlm"}[kind])
    shutil.copytree(PACKAGE / "models_tiny" / "mllm", tmp_path / "model")
    folder = edited(tmp_path / "model", without("layers.1."))
    spec = ModelSpec("mllm", "mlx" if kind == "mlx" else "qwen", str(folder), quantization=None if kind == "mlx" else kind)
    with pytest.raises(ModelLoadError, match=r"layers\.1\."):
        find_loader(spec).load(spec, CpuDevice())
