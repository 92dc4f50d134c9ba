"""Final answers with abstention: an answer is given only where it is certain enough to keep a promise about risk (algorithm.md 3).

The certainty of a fast answer is the trigger's own P(System 1 is right), that of a slow one its pooled probability. The threshold comes
from the whole recognizer's answers on calibration images: `joint`, at most epsilon of all images are answered and wrong; `selective`, of
the answered ones at most epsilon are wrong. The trigger must not have learned from those images, or the promise would not hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents import risk_control
from fgvr.agents.risk_control import Form, RiskGuarantee
from fgvr.types import Abstention, Prediction


def certainty(prediction: Prediction) -> float:
    """In [0, 1]; needs a trigger whose score is a probability."""
    return prediction.decision.score if prediction.by == "fast" else prediction.confidence


class Abstainer:
    """Withholds uncertain answers. Fitted when first asked: that takes the recognizer's answers on the calibration images."""

    def __init__(self, fit: Callable[[], RiskGuarantee]) -> None:
        self._fit = fit
        self._lock = threading.Lock()
        self._guarantee: RiskGuarantee | None = None

    @property
    def guarantee(self) -> RiskGuarantee:
        with self._lock:
            if self._guarantee is None:
                self._guarantee = self._fit()
            return self._guarantee

    def __call__(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        threshold = self.guarantee.threshold
        scores = [certainty(prediction) for prediction in predictions]
        return [replace(p, abstention=Abstention(s < threshold, s, threshold)) for p, s in zip(predictions, scores, strict=True)]


def fit_abstention(answers: Sequence[Prediction], *, epsilon: float, delta: float, form: Form, expected: np.ndarray) -> RiskGuarantee:
    """The threshold for final answers, from labelled answers on calibration images.

    Args: expected: certainties of other images, from which the rungs of the selective form are chosen without seeing these.
    """
    scores, right = np.array([certainty(p) for p in answers], float), np.array([bool(p.correct) for p in answers])
    if form == "joint":
        guarantee = risk_control.joint(scores, right, epsilon, delta)
    else:
        guarantee = risk_control.selective(scores, right, epsilon, delta, risk_control.ladder(expected, len(scores), epsilon, delta))
    return replace(guarantee, final=True)
