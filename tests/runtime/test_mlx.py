"""MLX on this machine: the same answers as PyTorch, the same pool, and all of its memory back."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.conversation import Conversation
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.mlx import MlxDevice
from fgvr.runtime.devices.mlx_memory import MLX
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders import mlx, transformers
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec, Picture
from fgvr.utils.paths import PACKAGE

from .helpers import module_of

pytestmark = pytest.mark.skipif(
    find_spec("mlx") is None or find_spec("mlx_vlm") is None, reason="MLX is not installed (Linux, Apple silicon): pip install 'fgvr[mlx]'"
)

TINY = PACKAGE / "models_tiny" / "mllm"
SPEC = ModelSpec("mllm", "mlx", "tiny")
PROMPTS = ["Describe the bird.", "What is its crown ? answer", "which bird"]
ANSWERS = [["red crown", "a blue bird with white wing"], ["black crown .", "a", "brown"], ["", "white"]]
SYSTEM = "You look closely."
NATS = 1e-3  # a log-likelihood may differ so much from PyTorch's (sums over some 40 tokens; 1.1e-4 seen)


@pytest.fixture(scope="module")
def ours() -> Iterator:
    model = mlx.LOADER.load(SPEC, CpuDevice())
    yield model
    del model
    MLX.empty()


@pytest.fixture(scope="module")
def torchs():
    return transformers.LOADER.load(replace(SPEC, loader="transformers"), CpuDevice())


@pytest.fixture(scope="module")
def birds() -> list[Image.Image]:
    from fgvr.data.birds import make_world, render

    world = make_world(9001, (2, 2, 2))
    return [render(world, species, "test", 0) for species in range(len(world.species))]


def assert_alike(scores, expected) -> None:
    for one, other in zip(scores, expected, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=NATS)
        assert (one.tokens, one.prompt_tokens) == (other.tokens, other.prompt_tokens)


def test_a_prompt_without_end_is_refused_with_the_numbers_and_a_very_long_picture_is_padded(ours) -> None:
    for ask in (lambda: ours.generate([[]], ["a" * 1_000_000]), lambda: ours.score([[]], ["q7 " * 5000], [["a"]])):
        with pytest.raises(ConfigError, match="more than the 4,096 tokens of tiny's context"):
            ask()
    (score,) = ours.score([Image.new("RGB", (5000, 1))], ["Describe the bird."], [["red"]])
    assert score.prompt_tokens < 2000


@pytest.mark.parametrize(("kind", "said"), [("qwen3_vl", "supported"), ("internvl", "supported"), ("nothing_known", "not named among")])
def test_the_plan_says_whether_mlx_vlm_reads_a_family(kind: str, said: str) -> None:
    assert said in mlx.LOADER.describe_family({"model_type": kind})


# --- the same answers as PyTorch ---------------------------------------------------------------------------------------------


def test_answers_and_scores_are_those_of_pytorch(ours, torchs, images: list[Image.Image]) -> None:
    for system in ("", SYSTEM):
        answers, expected = (m.generate(images, PROMPTS, system=system, max_new_tokens=24) for m in (ours, torchs))
        assert answers == expected
        assert [(a.prompt_tokens, a.new_tokens) for a in answers] == [(e.prompt_tokens, e.new_tokens) for e in expected]
        assert_alike(ours.score(images, PROMPTS, ANSWERS, system=system), torchs.score(images, PROMPTS, ANSWERS, system=system))


def test_the_agents_see_no_difference(ours, torchs, birds: list[Image.Image]) -> None:
    """The describer's answers, then every bird scored against all of them, as System 2 does."""
    from fgvr.agents.describe import Describer
    from fgvr.agents.slow import Option, Question, ScoreDecoder
    from fgvr.knowledge.classes import DescribeRequest

    requests = [DescribeRequest(f"bird {i}", "bird", (Picture(bird, str(i)),)) for i, bird in enumerate(birds)]
    described, expected = (Describer(m, max_new_tokens=80)(requests) for m in (ours, torchs))
    assert described == expected
    assert len({d.text for d in described}) > 1
    options = tuple(Option(str(i), f"bird {i}", d.text, 0.1) for i, d in enumerate(described))
    shown = [Question(options, ())] * len(birds)
    pictures = [Picture(bird, str(i)) for i, bird in enumerate(birds)]
    judged, wanted = (ScoreDecoder(m, superclass="bird", target="description")(pictures, shown) for m in (ours, torchs))
    for one, other in zip(judged, wanted, strict=True):
        assert one.log_likelihoods.argmax() == other.log_likelihoods.argmax()
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=NATS)


def test_a_prompt_may_have_no_picture_or_several(ours, torchs, images: list[Image.Image]) -> None:
    groups, prompts, answers = [[], images[:2], images[2]], ["describe", "describe", "describe"], [["red"], ["red", ""], []]
    assert ours.generate(groups, prompts, max_new_tokens=4) == [torchs.generate([g], ["describe"], max_new_tokens=4)[0] for g in groups]
    assert_alike(ours.score(groups, prompts, answers), torchs.score(groups, prompts, answers))


def test_scores_depend_neither_on_an_earlier_generation_nor_on_how_many_rows_go_at_once(
    ours, birds: list[Image.Image], monkeypatch
) -> None:
    before = ours.score(birds[:3], PROMPTS, ANSWERS)
    ours.generate(birds[3:], PROMPTS, max_new_tokens=3)
    assert ours.score(birds[:3], PROMPTS, ANSWERS) == before
    monkeypatch.setattr("fgvr.runtime.loaders.mlx_model.SCORING_BYTES", 1)
    assert_alike(ours.score(birds[:3], PROMPTS, ANSWERS), before)


def test_pytorchs_loader_keeps_its_own_processor(ours, torchs, images: list[Image.Image]) -> None:
    """mlx-vlm replaces AutoProcessor.from_pretrained for the process; loading must not leave that behind."""
    again = transformers.LOADER.load(replace(SPEC, loader="transformers", max_pixels=15_680), CpuDevice())
    assert again.score(images, PROMPTS, ANSWERS) == torchs.score(images, PROMPTS, ANSWERS)


# --- the same pool -----------------------------------------------------------------------------------------------------------


def held() -> int:
    return MLX.active() + MLX.cached()


@pytest.mark.parametrize("name", ["mlx", "cpu"])
def test_all_memory_comes_back_with_eviction_and_the_log_says_how_much(name: str, birds, caplog) -> None:
    MLX.begin()
    device = MlxDevice(CpuDevice()) if name == "mlx" else CpuDevice()
    pool = ModelPool(device, budget=400 << 20)
    pool.register(SPEC)

    def use() -> int:
        """Bytes of MLX while the model is there."""
        with pool.lease("mllm") as mllm:
            mllm.score(birds[:1], PROMPTS[:1], ANSWERS[:1])
            return held()

    use()
    pool.evict("mllm")
    start = held()  # mlx-vlm makes about 1 KiB of constants as it is first used
    assert use() - start >= next(iter(pool.status())).bytes == pytest.approx(mlx.LOADER.estimate(SPEC), rel=0.01)
    with caplog.at_level(logging.INFO):
        assert pool.evict("mllm") == pytest.approx(mlx.LOADER.estimate(SPEC), rel=0.01)
    assert held() == start
    assert any("before" in m and "after" in m and "released" in m for m in caplog.messages)


def test_what_somebody_keeps_is_not_called_released(birds) -> None:
    MLX.begin()
    pool = ModelPool(MlxDevice(CpuDevice()), budget=400 << 20)
    pool.register(SPEC)
    with pool.lease("mllm") as mllm:
        kept = module_of(mllm.model).vision_tower
    released = pool.evict("mllm")
    assert released < mlx.LOADER.estimate(SPEC)
    assert "did not come back" in next(iter(pool.status())).error
    del kept
    MLX.empty()


def test_threads_share_one_copy_and_get_the_same_answers(ours, birds) -> None:
    pool = ModelPool(CpuDevice(), budget=400 << 20)
    pool.register(SPEC)
    start = threading.Barrier(6)

    def ask(index: int) -> list[str]:
        start.wait(30)
        with pool.lease("mllm") as mllm:
            return [*mllm.generate(birds[index : index + 1], PROMPTS[:1], max_new_tokens=12)]

    with ThreadPoolExecutor(6) as threads:
        answers = [future.result(60) for future in [threads.submit(ask, i) for i in range(6)]]
    assert answers == [ours.generate(birds[i : i + 1], PROMPTS[:1], max_new_tokens=12) for i in range(6)]
    assert pool.loads["mllm"] == 1
    pool.close()


# --- folders and refusals ----------------------------------------------------------------------------------------------------


def copy_of_tiny(folder: Path, **config: object) -> ModelSpec:
    shutil.copytree(TINY, folder)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return replace(SPEC, source=str(folder))


def test_a_quantised_folder_is_sized_by_its_bytes_and_scores_nearly_alike(tmp_path: Path, ours, birds) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_vlm.utils import load_model

    spec = copy_of_tiny(tmp_path / "8bit", quantization={"group_size": 64, "bits": 8})
    module = load_model(TINY)
    nn.quantize(module.language_model, group_size=64, bits=8)
    mx.save_safetensors(f"{spec.source}/model.safetensors", dict(tree_flatten(module.parameters())))
    model = mlx.LOADER.load(spec, CpuDevice())
    assert model.nbytes == pytest.approx(mlx.LOADER.estimate(spec), rel=0.01)
    assert model.nbytes < 0.7 * ours.nbytes
    texts = ["A bird with red crown.", "A bird with blue crown, grey back."]
    near, exact = (m.score(birds[:2], PROMPTS[:2], [texts, texts]) for m in (model, ours))
    for one, other in zip(near, exact, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, rel=0.05)


@pytest.fixture
def another_family(tmp_path: Path) -> ModelSpec:
    """Qwen2-VL of random weights: another tower, and mlx-vlm's own processor and template."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map
    from mlx_vlm.models import qwen2_vl
    from mlx_vlm.utils import update_module_configs

    tower = {"model_type": "qwen2_vl", "depth": 2, "embed_dim": 32, "hidden_size": 192, "num_heads": 2, "mlp_ratio": 2, "in_channels": 3}
    spec = copy_of_tiny(tmp_path / "qwen2_vl", model_type="qwen2_vl", vision_config=tower)
    config = json.loads(Path(spec.source, "config.json").read_text())
    typed = qwen2_vl.ModelConfig.from_dict(dict(config))
    typed = update_module_configs(typed, qwen2_vl, config | {"text_config": config}, ["text", "vision"])
    mx.random.seed(0)
    weights = tree_map(lambda a: mx.random.normal(a.shape) * 0.1 + (a.ndim == 1), qwen2_vl.Model(typed).parameters())
    mx.save_safetensors(f"{spec.source}/model.safetensors", dict(tree_flatten(weights)))
    return spec


def test_another_family_is_loaded_and_scored_as_plain_forward_passes_would(another_family: ModelSpec, images) -> None:
    import mlx.core as mx

    assert not find_loader(another_family).check(another_family)
    model = mlx.LOADER.load(replace(another_family, max_pixels=100 * 100), CpuDevice())
    assert model.nbytes == pytest.approx(mlx.LOADER.estimate(another_family), rel=0.01)
    assert mlx.LOADER.work_bytes(another_family) > 0
    texts = ["A bird with red crown.", "black", ""]
    prompts = model._prompts
    first, second = model.score(images[:2], PROMPTS[:2], [texts, texts], system=SYSTEM)
    assert first.log_likelihoods != second.log_likelihoods
    for image, prompt, score in zip(images, PROMPTS, (first, second), strict=False):
        inputs = prompts.inputs(Conversation.single(image, prompt, SYSTEM))
        for text, found in zip(texts, score.log_likelihoods, strict=True):
            answer = mx.array([prompts.tokens(text)], dtype=inputs.ids.dtype)
            ids = mx.concatenate([inputs.ids, answer], axis=1)
            features = module_of(model).get_input_embeddings(ids, inputs.pixels, mask=mx.ones_like(ids), **inputs.extra)
            logits = (
                module_of(model)
                .language_model(
                    ids, inputs_embeds=features.inputs_embeds, position_ids=features.position_ids, rope_deltas=features.rope_deltas
                )
                .logits
            )
            log_probs = (logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0, inputs.ids.shape[1] - 1 : -1]
            assert found == pytest.approx(mx.take_along_axis(log_probs, answer[0][:, None], axis=1).sum().item(), abs=NATS)
    answers = model.generate(images[:2], PROMPTS[:2], max_new_tokens=5)
    assert all(0 < answer.new_tokens <= 5 for answer in answers)
    assert prompts.end == prompts.tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"model_file": "evil.py"}, "Python code of its own"), ({"hidden_size": None}, "nested form")],
)
def test_a_folder_mlx_would_misread_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    spec = copy_of_tiny(tmp_path / "model", **change)
    if "hidden_size" in change:
        config = json.loads(Path(spec.source, "config.json").read_text())
        del config["hidden_size"]
        Path(spec.source, "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=words):
        mlx.LOADER.check(spec)


def test_what_cannot_be_is_refused_with_its_cure() -> None:
    with pytest.raises(ConfigError, match=r"mlx_vlm.convert"):
        mlx.LOADER.estimate(replace(SPEC, quantization="int4"))
    with pytest.raises(ModelLoadError, match=r"runtime.device=mlx"):
        mlx.LOADER.load(SPEC, SimulatedDevice(1 << 30))
    with pytest.raises(ConfigError, match="logit scale"):
        mlx.LOADER.logit_scale(SPEC)


def test_published_conversions_are_sized_without_their_files(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    four, eight, whole = (
        find_loader(SPEC).estimate(replace(SPEC, source=f"mlx-community/Qwen2.5-VL-7B-Instruct-{kind}", dtype="bfloat16"))
        for kind in ("4bit", "8bit", "bf16")
    )
    assert whole == 16_584_333_312  # the original's index
    assert four / 1e9 == pytest.approx(5.64, abs=0.01)
    assert four < eight < whole
    four_bit = replace(SPEC, source="mlx-community/Qwen2.5-VL-7B-Instruct-4bit", max_pixels=1280 * 28 * 28)
    assert 0.5 < mlx.LOADER.work_bytes(four_bit) / 2**30 < 2.5
