"""The real model path, as far as it can be proven without weights: the real processor, real shapes, random weights.

Needs ../shared/data/qwen2_5_vl_7b (or FGVR_TEST_DATA); skipped where the processor files are absent.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.agents import prompts
from fgvr.runtime.conversation import Conversation
from fgvr.runtime.devices import pick_device
from fgvr.runtime.loaders.transformers import LOADER
from fgvr.runtime.loaders.transformers_mllm import TransformersMLLM
from fgvr.types import ModelSpec
from scripts import make_random_models

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FGVR_TEST_DATA", ROOT.parent / "shared" / "data")) / "qwen2_5_vl_7b"
WORDS = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "max_window_layers": 4,
         "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}  # fmt: skip
VISION = {"depth": 4, "hidden_size": 96, "num_heads": 3, "intermediate_size": 256, "out_hidden_size": 128, "fullatt_block_indexes": [1, 3]}
pytestmark = [
    pytest.mark.skipif(not (DATA / "tokenizer.json").is_file(), reason=f"no processor files in {DATA}"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def mllm_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Qwen2.5-VL of 20 M random parameters, nearly all of them words, behind the real processor."""
    folder = tmp_path_factory.mktemp("models") / "mllm"
    with pytest.MonkeyPatch.context() as patch:
        for sizes, smaller in ((make_random_models.SMALL, WORDS), (make_random_models.SMALL_VISION, VISION)):
            for name, value in smaller.items():
                patch.setitem(sizes, name, value)
        make_random_models.make_mllm(folder, DATA, small=True, seed=0)
    return ModelSpec("mllm", "transformers", str(folder), dtype="float32", max_pixels=1280 * 28 * 28)


@pytest.fixture(scope="module")
def mllm(mllm_spec: ModelSpec) -> TransformersMLLM:
    return LOADER.load(mllm_spec, pick_device("cpu"))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in ((320, 223), (100, 140), (90, 60))]


QUESTIONS = [prompts.describe_image("bird"), prompts.choose("dog", ["beagle", "pug"], ["", ""], (), ending="name"), "What is this?"]


def test_a_picture_of_320_by_223_costs_88_image_tokens(mllm, mllm_spec, pictures):
    inputs = mllm.inputs([Conversation.single(pictures[0], QUESTIONS[0], prompts.SYSTEM)])
    image_token = LOADER.prepare(mllm_spec)[0].tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert int((inputs["input_ids"] == image_token).sum()) == 88


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (97, 31), (320, 223), (20, 400), (1000, 50), (4000, 3000), (3000, 4001), (1121, 895)])
def test_the_tokens_of_a_picture_are_known_before_it_is_prepared(mllm, mllm_spec, size):
    prompts, ask = LOADER.prepare(mllm_spec)[0], Conversation.single(Image.new("RGB", size), "What is this?")
    expected = int(mllm.inputs([ask])["image_grid_thw"][0].prod()) // 4
    assert prompts.lengths([ask.images], ["What is this?"], "")[0] - prompts.lengths([[]], ["What is this?"], "")[0] == expected


def test_the_chat_is_the_one_the_real_template_makes(mllm_spec):
    prompts, _ = LOADER.prepare(mllm_spec)
    text = prompts.text(Conversation.single(Image.new("RGB", (56, 56)), "Which bird?", "Look closely."))
    assert text == (
        "<|im_start|>system\nLook closely.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which bird?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_batched_answers_equal_answers_one_by_one(mllm, pictures):
    together = mllm.generate(pictures, QUESTIONS, system=prompts.SYSTEM, max_new_tokens=6)
    alone = [mllm.generate([p], [q], system=prompts.SYSTEM, max_new_tokens=6)[0] for p, q in zip(pictures, QUESTIONS, strict=True)]
    assert together == alone
    assert [r.prompt_tokens for r in together] == [r.prompt_tokens for r in alone]


def test_batched_scores_equal_scores_one_by_one(mllm, pictures):
    options = [["a red crown", "blue"], ["beagle", "pug"], ["a dog", "a very small cat on a mat"]]
    together = mllm.score(pictures, QUESTIONS, options, system=prompts.SYSTEM)
    for i, (picture, question, texts) in enumerate(zip(pictures, QUESTIONS, options, strict=True)):
        (alone,) = mllm.score([picture], [question], [texts], system=prompts.SYSTEM)
        assert together[i].log_likelihoods == pytest.approx(alone.log_likelihoods, abs=1e-3)
        (single,) = mllm.score([picture], [question], [texts[1:]], system=prompts.SYSTEM)
        assert single.log_likelihoods[0] == pytest.approx(alone.log_likelihoods[1], abs=1e-3)


def test_the_cap_on_pixels_holds_for_a_photograph(mllm, mllm_spec):
    inputs = mllm.inputs([Conversation.single(Image.new("RGB", (4000, 3000)), "What is this?")])
    image_token = LOADER.prepare(mllm_spec)[0].tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert 1100 < int((inputs["input_ids"] == image_token).sum()) <= 1280
