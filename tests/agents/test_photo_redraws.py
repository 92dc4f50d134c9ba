"""The redraws behind docs/photos.md, on features whose difficulty is known."""

from __future__ import annotations

import numpy as np
import pytest

from fgvr.agents.fusion import Fusion
from fgvr.agents.risk_control import certifiable
from fgvr.knowledge.prototypes import unit
from scripts.photo_redraws import Features, draw


def drawn(noise: float) -> Features:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 16)
    vectors = unit(random.normal(size=(10, 24))[labels] + noise * random.normal(size=(160, 24)))
    return Features(vectors, vectors, labels, 1 / 30, np.zeros(160, bool))


@pytest.mark.parametrize("classifier", ["prototypes", "linear"])
def test_easy_photographs_are_answered_fast_and_rightly(classifier: str) -> None:
    found = draw(drawn(0.2), Fusion(classifier=classifier), shots=4, calibration=4, target="risk:0.1@0.1", seed=0)
    for form in ("joint", "selective"):
        assert (found[form].top1, found[form].risk) == (1.0, 0.0)
        assert found[form].fast > 0.9


def test_hopeless_photographs_are_hardly_answered_alone() -> None:
    found = draw(drawn(6.0), Fusion(classifier="linear"), shots=4, calibration=4, target="risk:0.1@0.1", seed=0)
    assert found["joint"].top1 < 0.5
    assert found["joint"].fast < 0.4 and found["selective"].fast < 0.2


def test_what_can_be_certified_is_the_exact_limit_without_an_error() -> None:
    assert "E from 0.023 up when none" in certifiable(100) and "when 5 are" in certifiable(100)
    assert pytest.approx(0.023, abs=5e-4) == 1 - 0.1 ** (1 / 100)
