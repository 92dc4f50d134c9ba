"""The matcher's loader, on random weights (fast assembly gives transformers' own probabilities) and on the shipped, trained ones."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders.blip import LOADER
from fgvr.runtime.loaders.encoders import BlipMatcher
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec, Picture

TEXTS = ["a red bird", "a black bird with white belly and blue tail.", "legs"]


@pytest.fixture(scope="module")
def spec(joint_folder: Path) -> ModelSpec:
    return ModelSpec("joint", "blip", str(joint_folder))


@pytest.fixture(scope="module")
def matcher(spec: ModelSpec) -> BlipMatcher:
    return LOADER.load(spec, CpuDevice())


def test_probabilities_are_those_of_transformers_own_model(matcher: BlipMatcher, joint_folder: Path, images: list[Image.Image]) -> None:
    import torch
    from transformers import BlipForImageTextRetrieval, BlipProcessor

    module = BlipForImageTextRetrieval.from_pretrained(joint_folder).eval()
    processor = BlipProcessor.from_pretrained(joint_folder)
    with torch.no_grad():
        odds = [module(**processor(images=i, text=t, return_tensors="pt")).itm_score for i, t in zip(images, TEXTS, strict=True)]
    expected = torch.cat(odds).softmax(-1)[:, 1].numpy()
    assert np.ptp(expected) > 0.05  # else everything would agree
    np.testing.assert_allclose(matcher.match(images, TEXTS), expected, atol=1e-5)


def test_a_batch_equals_one_by_one_whatever_its_padding(matcher: BlipMatcher, images: list[Image.Image]) -> None:
    together = matcher.match(images, TEXTS)
    assert together.dtype == np.float32 and together.shape == (3,)
    np.testing.assert_allclose([matcher.match([i], [t])[0] for i, t in zip(images, TEXTS, strict=True)], together, atol=1e-5)
    assert matcher.match([], []).shape == (0,)


def test_an_image_given_many_times_is_looked_at_once(
    matcher: BlipMatcher, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    look = matcher._look

    def count(distinct):
        looked.append(len(distinct))
        return look(distinct)

    expected = matcher.match([images[i] for i in (0, 1, 0, 2, 1, 0)], [*TEXTS, *TEXTS])
    monkeypatch.setattr(matcher, "_look", count)
    same = [Picture(images[i].copy(), f"hash {i}") for i in (0, 1, 0, 2, 1, 0)]  # other objects, same content
    np.testing.assert_array_equal(matcher.match(same, [*TEXTS, *TEXTS]), expected)
    unnamed = [Picture(images[i], "") for i in (0, 1, 0)]
    np.testing.assert_allclose(matcher.match(unnamed, TEXTS), expected[:3], atol=1e-5)
    assert looked == [3, 2]


def test_large_pictures_are_prepared_one_by_one(matcher: BlipMatcher) -> None:
    large = [Image.effect_noise((2400, 1800), 90).convert("RGB") for _ in range(6)]
    one, six = (CpuDevice().measure(lambda shown=shown: matcher.match(shown, ["a bird"] * len(shown))) for shown in (large[:1], large))
    assert six < 1.5 * one, "a picture of four megapixels takes more before it is scaled than all that follows"


def test_a_text_beyond_the_context_is_read_in_parts(matcher: BlipMatcher, images: list[Image.Image]) -> None:
    first, second = " ".join(["red", "bird"] * 9), " ".join(["blue", "tail"] * 9)  # 18 words each; the context has room for 22
    whole = matcher.match(images[:1], [f"{first} {second}"])
    np.testing.assert_allclose(whole, matcher.match([images[0]] * 2, [first, second]).mean(), atol=1e-6)
    assert matcher.match(images[:1], [""]).shape == (1,)


def test_the_dtype_asked_for_is_the_one_computed_in(matcher: BlipMatcher, spec: ModelSpec, images: list[Image.Image]) -> None:
    half = LOADER.load(replace(spec, dtype="bfloat16"), CpuDevice())
    assert half.nbytes == pytest.approx(matcher.nbytes / 2, rel=0.02)
    np.testing.assert_allclose(half.match(images, TEXTS), matcher.match(images, TEXTS), atol=0.1)


def test_the_estimate_is_the_measured_size(matcher: BlipMatcher, spec: ModelSpec) -> None:
    assert matcher.nbytes == pytest.approx(LOADER.estimate(spec), rel=0.02)
    assert LOADER.work_bytes(replace(spec, batch_size=8)) == 8 * LOADER.work_bytes(replace(spec, batch_size=1)) > 0


def test_position_numbers_in_the_file_as_older_files_have_them_change_nothing(
    matcher: BlipMatcher, joint_folder: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(joint_folder, tmp_path / "older")
    weights = load_file(folder / "model.safetensors") | {"text_encoder.embeddings.position_ids": torch.arange(24).unsqueeze(0)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    older = LOADER.load(ModelSpec("joint", "blip", str(folder)), CpuDevice())
    np.testing.assert_array_equal(older.match(images, TEXTS), matcher.match(images, TEXTS))
    assert older.nbytes == matcher.nbytes


def test_the_size_of_the_published_matcher_is_known_before_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    published = ModelSpec("joint", "blip", "Salesforce/blip-itm-base-coco", batch_size=32)
    assert LOADER.estimate(published) == 223_744_258 * 4
    assert LOADER.estimate(replace(published, dtype="bfloat16")) == 223_744_258 * 2
    assert 1 << 30 < LOADER.work_bytes(published) < 4 << 30


def test_the_published_matchers_layout_is_found_in_the_hub_cache(
    joint_folder: Path, matcher: BlipMatcher, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    home = tmp_path / "models--Salesforce--blip-itm-base-coco"
    shutil.copytree(joint_folder, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    cached = LOADER.load(ModelSpec("joint", "blip", "Salesforce/blip-itm-base-coco"), CpuDevice())
    np.testing.assert_array_equal(cached.match(images, TEXTS), matcher.match(images, TEXTS))


@pytest.mark.parametrize("damage", ["no weights", "another model", "cut", "other shapes", "fewer tensors"])
def test_a_wrong_folder_is_named_with_its_cure(damage: str, joint_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(joint_folder, tmp_path / "wrong")
    file = folder / "model.safetensors"
    if damage == "no weights":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "fewer tensors":
        weights = load_file(file)
        del weights["itm_head.weight"]
        save_file(weights, file)
    else:
        config = json.loads((folder / "config.json").read_text())
        if damage == "another model":
            config["architectures"] = ["BlipForConditionalGeneration"]
        else:
            config["vision_config"]["patch_size"] = 16
        (folder / "config.json").write_text(json.dumps(config))
    cure = {
        "no weights": "models.joint.source=FOLDER",
        "another model": "Salesforce/blip-itm-base-coco",
        "cut": "get it again",
        "other shapes": "2 mismatched",
        "fewer tensors": "itm_head.weight",
    }[damage]
    with pytest.raises(ModelLoadError, match=cure):
        LOADER.load(ModelSpec("joint", "blip", str(folder)), CpuDevice())


def test_a_place_where_nothing_is_gets_the_cure_and_a_matcher_has_no_logit_scale(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in (str(tmp_path / "none"), "Salesforce/blip-itm-base-coco"):
        with pytest.raises(ModelLoadError, match="models.joint.source=FOLDER"):
            LOADER.check(ModelSpec("joint", "blip", source))
    with pytest.raises(ConfigError, match="no logit scale"):
        LOADER.logit_scale(spec)


def test_it_is_loaded_by_its_first_match_only_once_for_all_threads_and_is_the_same_after_an_eviction(
    spec: ModelSpec, matcher: BlipMatcher, images: list[Image.Image]
) -> None:
    pool = ModelPool(CpuDevice(), budget=1 << 30)
    joint = pool.leased(replace(spec, batch_size=2))
    assert joint.fingerprint == LOADER.fingerprint(spec)
    assert sum(part.bytes for part in pool.plan("joint").parts) == LOADER.estimate(spec) + LOADER.work_bytes(joint.spec)
    assert pool.loads["joint"] == 0  # registered, planned, identified
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: joint.match(images, TEXTS), range(4), timeout=60))
    assert pool.loads["joint"] == 1
    assert pool.status().used == matcher.nbytes
    pool.evict("joint")
    assert pool.status().used == 0
    restored = joint.match(images, TEXTS)
    assert pool.loads["joint"] == 2
    for other in found:
        np.testing.assert_array_equal(other, restored)
    pool.close()
