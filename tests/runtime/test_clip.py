"""The encoder's loader on random weights: fast assembly gives the vectors of open_clip's own way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders.clip import LOADER
from fgvr.runtime.loaders.encoders import ClipEncoder
from fgvr.types import ModelSpec, Picture


@pytest.fixture(scope="module")
def spec(encoder_folder: Path) -> ModelSpec:
    return ModelSpec("encoder", "clip", str(encoder_folder))


@pytest.fixture(scope="module")
def encoder(spec: ModelSpec) -> ClipEncoder:
    return LOADER.load(spec, CpuDevice())


def test_assembled_on_meta_it_equals_open_clips_own_model(encoder: ClipEncoder, encoder_folder: Path, images: list[Image.Image]) -> None:
    import open_clip
    import torch

    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{encoder_folder}")
    module.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{encoder_folder}")(["a red bird"])
    with torch.no_grad():
        seen = module.encode_image(torch.stack([preprocess(i) for i in images]), normalize=True).numpy()
        read = module.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode(images), seen, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(["a red bird"]), read, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(module.logit_scale.exp().item())


def test_vectors_are_unit_float32_whatever_the_batch(encoder: ClipEncoder, images: list[Image.Image]) -> None:
    vectors = encoder.encode(images)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([encoder.encode([i]) for i in images]), vectors, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode([Picture(i, "") for i in images]), vectors)


def test_a_text_beyond_the_context_is_the_mean_of_its_sentences(encoder: ClipEncoder) -> None:
    sentences = ["a red bird.", "white belly.", "brown wing."]
    vectors = encoder.encode_text(sentences)
    mean = vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    assert not encoder._fits(" ".join(sentences))
    np.testing.assert_allclose(encoder.encode_text([" ".join(sentences), "a bird"])[0], mean, atol=1e-6)


def test_no_word_of_an_over_long_sentence_is_lost(encoder: ClipEncoder) -> None:
    text = "a red bird with black crown and white belly and blue tail and brown wing and red legs"
    pieces = list(encoder._fitting(text))
    assert " ".join(pieces) == text
    assert len(pieces) > 1
    assert all(encoder._fits(piece) for piece in pieces)
    other = encoder.encode_text([text.replace("red legs", "blue legs")])
    assert not np.allclose(encoder.encode_text([text]), other)


def test_the_dtype_asked_for_is_the_one_computed_in(encoder: ClipEncoder, spec: ModelSpec, images: list[Image.Image]) -> None:
    half = LOADER.load(replace(spec, dtype="bfloat16"), CpuDevice())
    assert half.nbytes == pytest.approx(encoder.nbytes / 2, rel=0.02)
    assert (half.encode(images) * encoder.encode(images)).sum(1).min() > 0.99


def test_the_estimate_is_the_measured_size(encoder: ClipEncoder, spec: ModelSpec) -> None:
    assert encoder.nbytes == pytest.approx(LOADER.estimate(spec), rel=0.02)
