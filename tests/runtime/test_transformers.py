"""The loader of multimodal models on one random Qwen2.5-VL: what does not depend on the family (test_families.py has the rest)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fgvr.runtime.conversation import Conversation
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import decoding
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.loaders.files import folder_fingerprint
from fgvr.runtime.loaders.transformers import LOADER
from fgvr.runtime.loaders.transformers_mllm import TransformersMLLM
from fgvr.types import ModelSpec, Picture

SYSTEM = "you look closely"
PROMPTS = ["describe", "what is visible ? answer with its name", "which bird"]
ANSWERS = [["red", "a blue bird with white wing"], ["black crown .", "a", "brown"], ["", "white"]]


@pytest.fixture(scope="module")
def spec(mllm_folder: Path) -> ModelSpec:
    return ModelSpec("mllm", "transformers", str(mllm_folder))


@pytest.fixture(scope="module")
def mllm(spec: ModelSpec) -> TransformersMLLM:
    return LOADER.load(spec, CpuDevice())


def test_the_loader_is_found_under_its_first_name_with_the_same_fingerprint(spec: ModelSpec) -> None:
    older = replace(spec, loader="qwen")
    assert type(find_loader(older)) is type(LOADER)
    assert find_loader(older).fingerprint(older) == LOADER.fingerprint(spec)


def test_fingerprints_of_folders_stay_what_they_were(spec: ModelSpec, mllm_folder: Path) -> None:
    """Caches and bases of earlier releases are found by them: the loader's first name, and the cap on pixels in force."""
    before = folder_fingerprint(replace(spec, loader="qwen"), mllm_folder, extra=28 * 28 * 64)
    assert LOADER.fingerprint(spec) == before


def test_votes_are_drawn_for_each_image_alone(mllm: TransformersMLLM, images: list[Image.Image]) -> None:
    named = [["a", "b"]] * 3
    settings = {"marker": "Answer:", "system": SYSTEM, "max_new_tokens": 6, "votes": 3}
    together = mllm.choose(images, PROMPTS, named, **settings)
    alone = [mllm.choose([i], [p], [n], **settings)[0] for i, p, n in zip(images, PROMPTS, named, strict=True)]
    assert [[str(c.reply) for c in one] for one in together] == [[str(c.reply) for c in one] for one in alone]
    assert {len(one) for one in together} == {3} and len({str(choice.reply) for choice in together[0]}) > 1, "their seeds differ"
    (greedy,) = mllm.choose(images[:1], PROMPTS[:1], named[:1], **settings | {"votes": 1})
    assert [choice.reply for choice in greedy] == mllm.generate(images[:1], PROMPTS[:1], system=SYSTEM, max_new_tokens=6)


def test_scores_do_not_depend_on_an_earlier_generation(mllm: TransformersMLLM, images: list[Image.Image]) -> None:
    before = mllm.score(images, PROMPTS, ANSWERS)
    mllm.generate(images[::-1], PROMPTS[::-1], max_new_tokens=3)
    assert mllm.score(images, PROMPTS, ANSWERS) == before


def test_scores_do_not_depend_on_how_many_rows_go_at_once(spec: ModelSpec, mllm: TransformersMLLM, images: list[Image.Image]) -> None:
    from transformers import AutoModelForImageTextToText

    module = AutoModelForImageTextToText.from_pretrained(spec.source, dtype=torch.float32).eval()
    inputs = mllm.inputs([Conversation.single(*pair) for pair in zip(images, PROMPTS, strict=True)])
    tokens = [[[5, 6, 2], [7, 2]], [[8, 9, 10, 11, 2]], []]
    with torch.inference_mode():
        prefix = decoding.prefill(module, inputs)
        together, alone = (decoding.continue_prefix(module, prefix, tokens, pad=0, limit=limit) for limit in (1 << 30, 1))
    assert [len(row) for row in together] == [2, 1, 0]
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-3)


def test_several_pictures_stand_before_the_text_in_the_one_user_turn(spec: ModelSpec, images: list[Image.Image]) -> None:
    prompts, _ = LOADER.prepare(spec)
    text = prompts.text(Conversation.single(images[:2], "describe", SYSTEM))
    assert text.count("<|im_start|>user") == 1
    assert text.rindex("<|image_pad|>") < text.index("describe")
    assert text.startswith("<|im_start|>system")
    assert "system" not in prompts.text(Conversation.single(images[0], "describe"))


def test_pictures_are_taken_as_well_as_pil_images(mllm: TransformersMLLM, images: list[Image.Image]) -> None:
    assert mllm.generate([Picture(images[0], "0")], ["describe"], max_new_tokens=4) == mllm.generate(
        images[:1], ["describe"], max_new_tokens=4
    )


def test_max_pixels_caps_what_a_picture_costs(mllm: TransformersMLLM, spec: ModelSpec) -> None:
    huge = Image.new("RGB", (1120, 1120), "red")
    small = LOADER.load(replace(spec, max_pixels=28 * 28 * 9), CpuDevice())
    capped, free = (m.inputs([Conversation.single(huge, "describe")])["input_ids"].shape[1] for m in (small, mllm))
    assert free - capped == 64 - 9


def test_small_models_compute_in_float32_and_are_measured_as_estimated(mllm: TransformersMLLM, spec: ModelSpec) -> None:
    assert mllm.nbytes == pytest.approx(LOADER.estimate(spec), rel=0.02)
    assert LOADER.load(replace(spec, dtype="bfloat16"), CpuDevice()).nbytes == pytest.approx(mllm.nbytes / 2, rel=0.02)
