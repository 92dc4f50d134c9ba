"""Every multimodal family with a profile: answers and scores of a batch are those of transformers itself, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from benchmarks.families import forecasts
from fgvr.errors import ConfigError
from fgvr.protocols import MLLM
from fgvr.runtime.conversation import Conversation, Sampling
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.loaders.families import PROFILES
from fgvr.runtime.probe import take
from fgvr.types import ModelSpec

from .tiny_families import ANSWERS, FAMILIES, PROMPTS, SYSTEM, WITHOUT_PROFILE, Plain, write_family


class Family(NamedTuple):
    spec: ModelSpec
    model: Any
    plain: Plain


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family, made when first asked for."""
    base = tmp_path_factory.mktemp("families")
    return lambda name: folder if (folder := base / name).is_dir() else write_family(name, folder)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, folders: Callable[[str], Path]) -> Family:
    if request.param == "smolvlm":
        pytest.importorskip("num2words")  # its processor's
    folder = folders(request.param)
    spec = ModelSpec("mllm", "transformers", str(folder), batch_size=4)
    model = find_loader(spec).load(spec, CpuDevice())
    return Family(spec, model, Plain(folder))


@pytest.fixture(scope="module")
def shown(images: list[Image.Image]) -> list[list[Image.Image]]:
    """One picture, several, none: so that rows differ in length, and are padded on the left."""
    return [images[:1], images[1:], []]


def test_the_processor_is_transformers_own_before_and_after_mlx_vlm_takes_the_place_of_auto_processor(
    folders: Callable[[str], Path], shown: list[list[Image.Image]]
) -> None:
    from transformers import AutoProcessor

    folder = folders("qwen2_vl")

    def scores(max_pixels: int) -> object:  # of another processor each time, as another cap is another model
        spec = ModelSpec("mllm", "transformers", str(folder), batch_size=4, max_pixels=max_pixels)
        return find_loader(spec).load(spec, CpuDevice()).score(shown, PROMPTS, ANSWERS, system=SYSTEM)

    own, before = vars(AutoProcessor)["from_pretrained"], scores(1_000_000)
    try:
        mlx = pytest.importorskip("mlx_vlm.models.base")
        theirs = pytest.importorskip("mlx_vlm.models.qwen2_vl.processing_qwen2_vl").Qwen2VLProcessor
        mlx.install_auto_processor_patch("qwen2_vl", theirs)
        assert isinstance(AutoProcessor.from_pretrained(folder), theirs), "whoever asks AutoProcessor gets another's"
        assert scores(1_000_001) == before
    finally:
        AutoProcessor.from_pretrained = own


def test_every_profile_is_tested() -> None:
    assert set(PROFILES) == set(FAMILIES) - set(WITHOUT_PROFILE)


def test_scores_of_a_padded_batch_are_those_of_single_forward_passes(family: Family, shown: list[list[Image.Image]]) -> None:
    for images, prompt, answers, score in zip(
        shown, PROMPTS, ANSWERS, family.model.score(shown, PROMPTS, ANSWERS, system=SYSTEM), strict=True
    ):
        plain = [family.plain.score(images, prompt, answer) for answer in answers]
        assert score.log_likelihoods == pytest.approx(plain, abs=1e-3)
        assert score.prompt_tokens == family.plain.inputs(images, prompt, [])["input_ids"].shape[1]


def test_layers_beside_the_device_change_no_answer(family: Family, shown: list[list[Image.Image]]) -> None:
    spec, device = replace(family.spec, offloaded=1), CpuDevice()
    model = find_loader(spec).load(spec, device)
    model.place(device)
    assert model.nbytes < family.model.nbytes and model.movable is None
    scores, whole = (found.score(shown, PROMPTS, ANSWERS, system=SYSTEM) for found in (model, family.model))
    for score, expected in zip(scores, whole, strict=True):
        assert score.log_likelihoods == pytest.approx(expected.log_likelihoods, abs=1e-4)


def test_answers_of_a_padded_batch_are_those_of_single_forward_passes(family: Family, shown: list[list[Image.Image]]) -> None:
    assert isinstance(family.model, MLLM)
    replies = family.model.generate(shown, PROMPTS, system=SYSTEM, max_new_tokens=6)
    assert replies == [family.plain.generate(images, prompt, 6) for images, prompt in zip(shown, PROMPTS, strict=True)]
    assert all(0 < reply.new_tokens <= 6 for reply in replies)


def test_parked_and_returned_answers_are_the_same_bits(family: Family, shown: list[list[Image.Image]]) -> None:
    device = SimulatedDevice(100 << 20)
    model = find_loader(family.spec).load(family.spec, device)
    model.place(device)
    before = model.score(shown, PROMPTS, ANSWERS), model.generate(shown, PROMPTS, max_new_tokens=4)
    assert model.movable is not None and model.movable.park() > 0 and device.allocated() == 0
    model.movable.restore(device)
    assert (model.score(shown, PROMPTS, ANSWERS), model.generate(shown, PROMPTS, max_new_tokens=4)) == before


def test_weights_are_as_large_as_planned_and_a_very_long_picture_is_padded(family: Family) -> None:
    loader = find_loader(family.spec)
    general = " by the general path, which is not tested with this family" if Path(family.spec.source).name in WITHOUT_PROFILE else ""
    assert f"supported{general}; its weights are here" in loader.describe_files(family.spec)
    assert family.model.nbytes == pytest.approx(loader.estimate(family.spec), rel=0.01)
    assert loader.work_bytes(family.spec) > 0
    (score,) = family.model.score([Image.new("RGB", (5000, 1))], ["describe"], [["red"]])
    assert score.prompt_tokens <= family.model.tokens_per_item


@pytest.mark.parametrize("name", ["llava", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "llava")])
def test_a_probe_forecasts_another_batch_within_5_percent(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Of other pictures and words. Until there is one, the estimate is not too small."""
    if name == "smolvlm":
        pytest.importorskip("num2words")
    spec = ModelSpec("mllm", "transformers", str(folders(name)), batch_size=2)
    model = find_loader(spec).load(spec, CpuDevice())
    ((_, estimate, probed),) = forecasts(model, spec, tmp_path, probed=2, tried=[3])
    assert probed == pytest.approx(1, abs=0.05) and estimate > 1


def test_a_picture_as_large_as_max_pixels_allows_takes_no_more_than_the_probe_says(folders: Callable[[str], Path]) -> None:
    spec, device = ModelSpec("mllm", "transformers", str(folders("qwen2_5_vl")), batch_size=1, max_pixels=1_170_000), CpuDevice()
    loader = find_loader(spec)
    model = loader.load(spec, device)
    measured = take(model, spec, device, loader.most_pixels(spec))[1]
    for size in ((1081, 1081), (1248, 936), (936, 1248)):
        picture = Image.effect_noise(size, 90).convert("RGB")
        assert device.measure(lambda shown=picture: model.score([[shown]], ["describe"], [["red"]])) <= measured, size


def test_fewer_pixels_cost_fewer_tokens_and_another_fingerprint(family: Family) -> None:
    few, loader = replace(family.spec, max_pixels=28 * 28), find_loader(family.spec)
    ask = Conversation.single(Image.new("RGB", (900, 700)), "describe")
    free, capped = (int(model.inputs([ask])["attention_mask"].sum()) for model in (family.model, loader.load(few, CpuDevice())))
    assert capped < free or (capped == free and Path(family.spec.source).name in ("gemma3", "llava")), "theirs always take the same"
    assert loader.fingerprint(few) != loader.fingerprint(family.spec)


def test_a_prompt_without_end_is_refused_with_the_numbers(family: Family, images: list[Image.Image]) -> None:
    loader, long = find_loader(family.spec), "red " * 100_000
    for ask in (
        lambda: family.model.score([images[0]], [long], [["red"]]),
        lambda: family.model.generate([images[0]], [long]),
        lambda: family.model.generate([images * 200], ["describe"]),
        lambda: loader.check_prompt(family.spec, Conversation.single(images[0], "describe", max_new_tokens=100_000)),
    ):
        with pytest.raises(ConfigError, match=r"more than the \d,\d+ tokens of .*(context|batch in the memory plan)"):
            ask()
    many = replace(Conversation.single(images[:1], "describe"), sampling=Sampling(5))
    loader.check_prompt(family.spec, many)
