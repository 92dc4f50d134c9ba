"""Does this image need slow thinking? Policies over batches of System 1 results; every decision says why.

Each policy escalates iff its score is below its threshold. `calibrated` lives in calibration.py: it has to learn first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from fgvr.types import Decision, FastResult


class Never:
    """System 1 alone."""

    name = "never"

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        return [Decision(False, 1.0, 0.0) for _ in results]


class Always:
    """System 2 on every image."""

    name = "always"

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        return [Decision(True, 0.0, 1.0) for _ in results]


class Random:
    """The floor at equal cost: a fixed share of images, chosen by a hash of their content, so that order and batches do not matter."""

    name = "random"

    def __init__(self, *, slow_rate: float, seed: int) -> None:
        self._slow_rate = slow_rate
        self._seed = seed

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        scores = [_uniform(f"{self._seed}:{result.sha256}") for result in results]
        return [Decision(score < self._slow_rate, score, self._slow_rate) for score in scores]


class Sare:
    """The published rule (arXiv 2603.17729): accept iff p - eta sqrt(ln N / 2 n_c) - alpha H > T, n_c = the class's shots.

    With ten shots or fewer the Hoeffding term alone is .54 or more, so it accepts nothing; kept for comparison.
    """

    name = "sare"

    def __init__(self, *, eta: float, alpha: float, threshold: float, shots: int) -> None:
        self._eta, self._alpha, self._threshold, self._shots = eta, alpha, threshold, shots

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        return [self._decide(result) for result in results]

    def _decide(self, result: FastResult) -> Decision:
        doubt = hoeffding(self._shots, max(result.history.total, 2), self._eta)
        ambiguity = self._alpha * result.entropy
        score = result.confidence - doubt - ambiguity
        # The published comparison is strict: a score equal to T is not accepted.
        return Decision(
            score <= self._threshold, score, self._threshold, {"confidence": result.confidence, "doubt": -doubt, "entropy": -ambiguity}
        )


def hoeffding(seen: int, total: int, scale: float) -> float:
    """How far the true accuracy may lie below the observed one: scale * sqrt(ln total / (2 seen)); 1 for a class never seen."""
    return scale * math.sqrt(math.log(total) / (2 * seen)) if seen > 0 else scale


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
