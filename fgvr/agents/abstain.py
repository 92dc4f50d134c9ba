"""Abstention: a final answer is given only where it is certain enough for a guarantee about risk (docs/method.md, section 3).

The certainty of a fast answer is the trigger's P(System 1 is right). The certainty of a slow answer is its fused probability. The
threshold comes from the whole recognizer's answers on calibration images. The trigger must not have learned from those images, or the
guarantee would not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents.risk_control import Form, RiskGuarantee, certify
from fgvr.types import Abstention, Prediction
from fgvr.utils.lazy import Lazy


def certainty(prediction: Prediction) -> float:
    """In [0, 1]; needs a trigger whose score is a probability."""
    return prediction.decision.score if prediction.by == "fast" else prediction.confidence


class Abstainer:
    """Withholds uncertain answers. It is fitted at the first answer, because that needs the recognizer's own answers."""

    def __init__(self, fit: Callable[[], RiskGuarantee]) -> None:
        self._guarantee = Lazy(fit)

    @property
    def guarantee(self) -> RiskGuarantee:
        return self._guarantee()

    def __call__(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        threshold = self.guarantee.threshold
        scores = [certainty(prediction) for prediction in predictions]
        return [replace(p, abstention=Abstention(s < threshold, s, threshold)) for p, s in zip(predictions, scores, strict=True)]


def fit_abstention(answers: Sequence[Prediction], *, epsilon: float, delta: float, form: Form, expected: np.ndarray) -> RiskGuarantee:
    """The threshold for final answers, from labelled answers on calibration images.

    Args: expected: certainties of other images, from which the rungs of the selective form are chosen.
    """
    scores, right = np.array([certainty(p) for p in answers], float), np.array([bool(p.correct) for p in answers])
    return replace(certify(form, scores, right, expected, epsilon, delta), final=True)
