"""Nothing is half loaded: another family, absent shards and tensors that do not fit are refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "another kind of model": ({"model_type": "bert", "architectures": ["BertModel"]}, r"holds BertModel \(bert\), which is no image-text"),
    "a language model alone": ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, r"Gemma3ForCausalLM \(gemma3_text\)"),
    "another head": (
        {"architectures": ["Qwen2_5_VLForTokenClassification"]},
        r"holds Qwen2_5_VLForTokenClassification .*loaded as Qwen2_5_VLForConditionalGeneration",
    ),
    "saved in fewer bits": ({"quantization_config": {"quant_method": "awq"}}, r"quantised by awq"),
}


def copied(folder: Path, place: Path) -> Path:
    return shutil.copytree(folder, place / "model")


def foreign(folder: Path, kind: str) -> Path:
    changed = json.loads((folder / "config.json").read_text()) | FOREIGN[kind][0]
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_folder_is_refused_by_name(kind: str, mllm_folder: Path, tmp_path: Path) -> None:
    spec = ModelSpec("mllm", "transformers", str(foreign(copied(mllm_folder, tmp_path), kind)))
    loader = find_loader(spec)
    for look in (loader.check, loader.estimate, lambda spec: loader.load(spec, CpuDevice())):
        with pytest.raises(ModelLoadError, match=FOREIGN[kind][1]):
            look(spec)


@pytest.mark.parametrize("mode", ["plan", "doctor"])
def test_a_foreign_folder_is_refused_by_every_command(
    mode: str, mllm_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = foreign(copied(mllm_folder, tmp_path), "another head")
    assert main([f"mode={mode}", "models=tiny", f"models.mllm.source={folder}", f"paths.home={tmp_path}", "logging.json=true"]) == 3
    printed = capsys.readouterr()
    said = " ".join((printed.out + printed.err).split())
    assert re.search(FOREIGN["another head"][1], said) and "Traceback" not in printed.err


def test_a_folder_without_a_chat_template_is_refused(mllm_folder: Path, tmp_path: Path) -> None:
    folder = copied(mllm_folder, tmp_path)
    (folder / "chat_template.jinja").unlink()
    spec = ModelSpec("mllm", "transformers", str(folder))
    with pytest.raises(ModelLoadError, match=r"Qwen2_5_VLForConditionalGeneration .*without a chat template"):
        find_loader(spec).check(spec)


def test_a_family_that_reads_pictures_from_outside_the_prompt_is_refused_before_its_weights_are_read(
    mllm_folder: Path, tmp_path: Path
) -> None:
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 99,
        "pad_token_id": 0,
    }
    text |= {"intermediate_size": 32, "cross_attention_layers": []}
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 28,
    }
    folder = copied(mllm_folder, tmp_path)
    (folder / "model.safetensors").unlink()
    MllamaForConditionalGeneration(MllamaConfig(text_config=text, vision_config=vision | {"vision_output_dim": 64})).save_pretrained(folder)
    spec = ModelSpec("mllm", "transformers", str(folder))
    assert "by the general path" in find_loader(spec).describe_files(spec)
    with pytest.raises(ModelLoadError, match=r"MllamaForConditionalGeneration, which is not supported: .*cross-attention"):
        find_loader(spec).load(spec, CpuDevice())


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


@contextmanager
def taken() -> Iterator[list[int]]:
    """Bytes of each tensor that operations make outside the meta device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    seen: list[int] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            seen.extend(t.nbytes for t in tree_leaves(made) if isinstance(t, torch.Tensor) and not t.is_meta)
            return made

    with Watching():
        yield seen


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("layers.1."), r"missing \(.*layers\.1\..*\.\.\.\)"),
        (more, r"1 unexpected \(.*strange"),
        (cut("o_proj.weight"), r"2 mismatched \(.*o_proj.weight"),
    ],
)
def test_an_mllm_whose_tensors_do_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], said: str, mllm_folder: Path, tmp_path: Path
) -> None:
    """Before memory is taken: tensors made on the way have no values."""
    spec = ModelSpec("mllm", "transformers", str(edited(copied(mllm_folder, tmp_path), change)))
    loader = find_loader(spec)
    loader.prepare(spec)
    with pytest.raises(ModelLoadError, match=said) as refused, taken() as seen:
        loader.load(spec, CpuDevice())
    assert "Qwen2_5_VLForConditionalGeneration (qwen2_5_vl)" in str(refused.value)
    assert sum(seen) < loader.estimate(spec) / 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("resblocks.0."), r"missing \(.*resblocks\.0\."),
        (more, r"1 unexpected"),
        (cut("token_embedding"), r"1 mismatched \(token_embedding"),
    ],
)
def test_an_encoder_whose_tensors_do_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], said: str, encoder_folder: Path, tmp_path: Path
) -> None:
    folder = edited(copied(encoder_folder, tmp_path), change, "open_clip_model.safetensors")
    spec = ModelSpec("encoder", "clip", str(folder))
    with pytest.raises(ModelLoadError, match=said):
        find_loader(spec).load(spec, CpuDevice())


@pytest.mark.parametrize(
    ("change", "said"),
    [(without("layers.0."), r"missing \(.*layers\.0\."), (more, r"1 unexpected"), (cut("itm_head.weight"), r"1 mismatched \(itm_head")],
)
def test_a_matcher_whose_tensors_do_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], said: str, joint_folder: Path, tmp_path: Path
) -> None:
    spec = ModelSpec("joint", "blip", str(edited(copied(joint_folder, tmp_path), change)))
    with pytest.raises(ModelLoadError, match=said):
        find_loader(spec).load(spec, CpuDevice())


def test_an_encoder_folder_that_describes_none_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    folder = copied(encoder_folder, tmp_path)
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
    spec = ModelSpec("mllm", "mlx" if kind == "mlx" else "transformers", str(folder), quantization=None if kind == "mlx" else kind)
    with pytest.raises(ModelLoadError, match=r"layers\.1\."):
        find_loader(spec).load(spec, CpuDevice())
