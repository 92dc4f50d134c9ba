"""Handles and fakes: what agents hold instead of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.protocols import MLLM as MLLMProtocol
from fgvr.protocols import Encoder, JointEncoder
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec

from .conftest import ENCODER, JOINT, MLLM

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def test_handles_are_the_protocols_and_load_nothing_until_called(pool: ModelPool) -> None:
    encoder, mllm, joint = pool.leased(ENCODER), pool.leased(MLLM), pool.leased(JOINT)
    assert isinstance(encoder, Encoder) and isinstance(mllm, MLLMProtocol) and isinstance(joint, JointEncoder)
    assert encoder.fingerprint != mllm.fingerprint
    assert sum(pool.loads.values()) == 0
    assert encoder.logit_scale == 100.0
    assert encoder.encode([RED, BLUE]).shape == encoder.encode_text(["red", "blue"]).shape == (2, 64)
    assert len(mllm.score([RED], ["which"], [["a", "b"]])[0].log_likelihoods) == 2
    assert joint.match([RED], ["red"]).shape == (1,)
    assert all(m.leases == 0 for m in pool.status())


def test_fakes_answer_the_same_thing_to_the_same_question(pool: ModelPool) -> None:
    encoder, mllm = pool.leased(ENCODER), pool.leased(MLLM)
    first = encoder.encode([RED, BLUE])
    pool.cleanup()
    np.testing.assert_array_equal(encoder.encode([RED, BLUE]), first)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    assert first[0] @ first[1] < 0.99
    assert mllm.generate([RED], ["Describe."]) == mllm.generate([RED], ["Describe."]) != mllm.generate([BLUE], ["Describe."])
    offered = "Which?\nA. Wren: small\nB. Robin: red\n"
    assert mllm.generate([RED], [offered + "Answer with its name."])[0] in ("Wren", "Robin")
    assert mllm.generate([RED], [offered + "Answer with its letter."])[0] in ("A", "B")
    assert mllm.generate([[RED, BLUE]], ["Describe."], max_new_tokens=2)[0].new_tokens == 2


def test_the_real_loaders_work_through_the_pool(encoder_folder: Path, mllm_folder: Path, images: list[Image.Image]) -> None:
    pool = ModelPool(CpuDevice(), budget=1 << 30)
    encoder = pool.leased(ModelSpec("encoder", "clip", str(encoder_folder), batch_size=2))
    mllm = pool.leased(ModelSpec("mllm", "transformers", str(mllm_folder), batch_size=2))
    vectors, answers = encoder.encode(images), mllm.generate(images, ["describe"] * 3, max_new_tokens=4)
    assert pool.plan().fits
    assert pool.cleanup() == sum(m.bytes for m in pool.status())
    np.testing.assert_array_equal(encoder.encode(images), vectors)  # bit-equal after evict and reload
    assert mllm.generate(images, ["describe"] * 3, max_new_tokens=4) == answers
    assert pool.loads == {"mllm": 2, "encoder": 2, "joint": 0}
    assert "not released" not in repr(pool.status())
    with pool.lease("encoder", "mllm") as (e, m):
        assert e.fingerprint == encoder.fingerprint and m.fingerprint == mllm.fingerprint
    pool.close()
    with pytest.raises(Exception, match="closed"):
        encoder.encode(images)
