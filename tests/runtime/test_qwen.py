"""The Qwen2.5-VL loader on random weights: batching and cache sharing change nothing but speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fgvr.runtime.conversation import Conversation
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import scoring
from fgvr.runtime.loaders.qwen import LOADER
from fgvr.runtime.loaders.qwen_mllm import QwenMLLM
from fgvr.types import ModelSpec, Picture

SYSTEM = "you look closely"
PROMPTS = ["describe", "what is visible ? answer with its name", "which bird"]
ANSWERS = [["red", "a blue bird with white wing"], ["black crown .", "a", "brown"], ["", "white"]]


@pytest.fixture(scope="module")
def spec(mllm_folder: Path) -> ModelSpec:
    return ModelSpec("mllm", "qwen", str(mllm_folder))


@pytest.fixture(scope="module")
def mllm(spec: ModelSpec) -> QwenMLLM:
    return LOADER.load(spec, CpuDevice())


def chat(mllm: QwenMLLM, ask: Conversation) -> str:
    """What the model reads, image marks included once each."""
    return mllm._tokenizer.decode(mllm.inputs([ask])["input_ids"][0])


def full_forward(mllm: QwenMLLM, image, prompt: str, answer: str, system: str) -> float:
    """The plain way: prompt and answer in one sequence, no cache, positions found by the model itself."""
    inputs = mllm.inputs([Conversation.single(image, prompt, system)])
    tokenizer = mllm._tokenizer
    answer_ids = torch.tensor([[*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]])
    prompt_length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer_ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer_ids)], dim=1)
    with torch.inference_mode():
        log_probs = mllm._module(**inputs).logits[:, prompt_length - 1 : -1].float().log_softmax(-1)
    return log_probs.gather(2, answer_ids[..., None]).sum().item()


def test_votes_are_drawn_for_each_image_alone(mllm: QwenMLLM, images: list[Image.Image]) -> None:
    named = [["a", "b"]] * 3
    settings = {"marker": "Answer:", "system": SYSTEM, "max_new_tokens": 6, "votes": 3}
    together = mllm.choose(images, PROMPTS, named, **settings)
    alone = [mllm.choose([i], [p], [n], **settings)[0] for i, p, n in zip(images, PROMPTS, named, strict=True)]
    assert [[str(c.reply) for c in one] for one in together] == [[str(c.reply) for c in one] for one in alone]
    assert {len(one) for one in together} == {3} and len({str(choice.reply) for choice in together[0]}) > 1, "their seeds differ"
    (greedy,) = mllm.choose(images[:1], PROMPTS[:1], named[:1], **settings | {"votes": 1})
    assert [choice.reply for choice in greedy] == mllm.generate(images[:1], PROMPTS[:1], system=SYSTEM, max_new_tokens=6)


@pytest.mark.parametrize("system", ["", SYSTEM])
def test_scores_of_a_batch_equal_plain_forward_passes(mllm: QwenMLLM, images: list[Image.Image], system: str) -> None:
    scores = mllm.score(images, PROMPTS, ANSWERS, system=system)
    for image, prompt, answers, score in zip(images, PROMPTS, ANSWERS, scores, strict=True):
        plain = [full_forward(mllm, image, prompt, answer, system) for answer in answers]
        assert score.log_likelihoods == pytest.approx(plain, abs=1e-3)
        assert score.prompt_tokens == int(mllm.inputs([Conversation.single(image, prompt, system)])["attention_mask"].sum())


def test_scores_do_not_depend_on_an_earlier_generation(mllm: QwenMLLM, images: list[Image.Image]) -> None:
    before = mllm.score(images, PROMPTS, ANSWERS)
    mllm.generate(images[::-1], PROMPTS[::-1], max_new_tokens=3)
    assert mllm.score(images, PROMPTS, ANSWERS) == before


def test_scores_do_not_depend_on_how_many_rows_go_at_once(mllm: QwenMLLM, images: list[Image.Image]) -> None:
    inputs = mllm.inputs([Conversation.single(*pair) for pair in zip(images, PROMPTS, strict=True)])
    tokens = [[[5, 6, 2], [7, 2]], [[8, 9, 10, 11, 2]], []]
    with torch.inference_mode():
        prefix = scoring.prefill(mllm._module, inputs)
        together, alone = (scoring.continue_prefix(mllm._module, prefix, tokens, pad=0, limit=limit) for limit in (1 << 30, 1))
    assert [len(row) for row in together] == [2, 1, 0]
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-3)


def test_several_pictures_stand_before_the_text_in_the_one_user_turn(mllm: QwenMLLM, images: list[Image.Image]) -> None:
    text = chat(mllm, Conversation.single(images[:2], "describe", SYSTEM))
    assert text.count("<|im_start|>user") == 1
    assert text.rindex("<|image_pad|>") < text.index("describe")
    assert text.startswith("<|im_start|>system")
    assert "system" not in chat(mllm, Conversation.single(images[0], "describe"))
    (score,) = mllm.score([images[:2]], ["describe"], [["red"]])
    assert score.log_likelihoods[0] == pytest.approx(full_forward(mllm, images[:2], "describe", "red", ""), abs=1e-3)


def test_a_prompt_may_have_no_picture(mllm: QwenMLLM) -> None:
    (score,) = mllm.score([[]], ["describe"], [["red"]])
    assert score.log_likelihoods[0] == pytest.approx(full_forward(mllm, [], "describe", "red", ""), abs=1e-3)
    assert isinstance(mllm.generate([[]], ["describe"], max_new_tokens=2)[0], str)


def test_batched_answers_equal_single_answers(mllm: QwenMLLM, images: list[Image.Image]) -> None:
    batch = mllm.generate(images, PROMPTS, system=SYSTEM, max_new_tokens=12)
    single = [mllm.generate([i], [p], system=SYSTEM, max_new_tokens=12)[0] for i, p in zip(images, PROMPTS, strict=True)]
    assert batch == single
    assert [r.prompt_tokens for r in batch] == [r.prompt_tokens for r in single]
    assert [r.new_tokens for r in batch] == [r.new_tokens for r in single]
    assert all(0 < r.new_tokens <= 12 for r in batch)


def test_answers_are_greedy_whatever_the_folder_recommends(mllm: QwenMLLM, mllm_folder: Path, images: list[Image.Image]) -> None:
    assert json.loads((mllm_folder / "generation_config.json").read_text())["repetition_penalty"] == 1.3  # and yet
    (reply,) = mllm.generate(images[:1], ["describe"], max_new_tokens=6)
    inputs, tokens = mllm.inputs([Conversation.single(images[0], "describe")]), []
    while len(tokens) < 6 and not (tokens and tokens[-1] in mllm._stops):
        with torch.inference_mode():
            tokens.append(int(mllm._module(**inputs).logits[0, -1].argmax()))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[tokens[-1]]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros((1, 1), dtype=torch.long)], dim=1)
    assert reply == mllm._tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_pictures_are_taken_as_well_as_pil_images(mllm: QwenMLLM, images: list[Image.Image]) -> None:
    assert mllm.generate([Picture(images[0], "0")], ["describe"], max_new_tokens=4) == mllm.generate(
        images[:1], ["describe"], max_new_tokens=4
    )


def test_max_pixels_caps_what_a_picture_costs(mllm: QwenMLLM, spec: ModelSpec) -> None:
    huge = Image.new("RGB", (1120, 1120), "red")
    small = LOADER.load(replace(spec, max_pixels=28 * 28 * 9), CpuDevice())
    capped, free = (m.inputs([Conversation.single(huge, "describe")])["input_ids"].shape[1] for m in (small, mllm))
    assert free - capped == 64 - 9


def test_small_models_compute_in_float32_and_are_measured_as_estimated(mllm: QwenMLLM, spec: ModelSpec) -> None:
    assert mllm._module.dtype == torch.float32
    assert mllm.nbytes == pytest.approx(LOADER.estimate(spec), rel=0.02)
    assert LOADER.load(replace(spec, dtype="bfloat16"), CpuDevice()).nbytes == pytest.approx(mllm.nbytes / 2, rel=0.02)
