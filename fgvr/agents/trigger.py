"""Trigger policies: which images System 1 may answer, and which are escalated to System 2. Every decision says why.

A policy maps a batch of System 1's results to decisions. It escalates an image iff its score is below its threshold. The policy
`calibrated` is in calibration.py.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np

from fgvr.errors import FgvrError
from fgvr.protocols import Trigger
from fgvr.types import Decision, FastResult


def decide(trigger: Trigger, results: Sequence[FastResult]) -> list[Decision]:
    """One decision per result. Raises FgvrError for anything else, since a trigger may be somebody's own."""
    found = trigger(results)
    wrong = [one for one in found if not _is_decision(one)] if isinstance(found, Sequence) else [found]
    if wrong or len(found) != len(results):
        said = f"{len(found)} decisions for {len(results)} results" if not wrong else f"{wrong[0]!r:.200}"
        raise FgvrError(
            f"the trigger {type(trigger).__module__}.{type(trigger).__qualname__} returned {said}; expected is a list with one "
            "fgvr.types.Decision per result, whose escalate is a bool, whose score is finite, and whose terms are numbers"
        )
    return [one if isinstance(one.escalate, bool) else replace(one, escalate=bool(one.escalate)) for one in found]


def _is_decision(one: object) -> bool:
    if not isinstance(one, Decision) or not isinstance(one.escalate, bool | np.bool_):
        return False
    numbers = (one.score, one.threshold, *one.terms.values())
    return all(isinstance(n, Real) and not math.isnan(n) for n in numbers) and math.isfinite(one.score)


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


@dataclass(frozen=True, kw_only=True)
class Random:
    """Escalates a fixed share of images, chosen by a hash of their content. It is the floor at equal cost."""

    name = "random"

    slow_rate: float
    seed: int

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        digests = (hashlib.sha256(f"{self.seed}:{result.sha256}".encode()).digest() for result in results)
        scores = [int.from_bytes(digest[:8]) / 2**64 for digest in digests]  # uniform in [0, 1)
        return [Decision(score < self.slow_rate, score, self.slow_rate) for score in scores]


@dataclass(frozen=True, kw_only=True)
class Sare:
    """The published rule (arXiv 2603.17729): accept iff p - eta sqrt(ln N / 2 n_c) - alpha H > T, n_c = the class's shots.

    With ten shots or fewer the Hoeffding term alone is .54 or more, so the rule accepts nothing. It is here for comparison.
    """

    name = "sare"

    eta: float
    alpha: float
    threshold: float
    shots: int

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        return [self._decide(result) for result in results]

    def _decide(self, result: FastResult) -> Decision:
        doubt = hoeffding(self.shots, max(result.history.total, 2), self.eta)
        ambiguity = self.alpha * result.entropy
        score = result.confidence - doubt - ambiguity
        # The published comparison is strict: a score equal to T is not accepted.
        return Decision(
            score <= self.threshold, score, self.threshold, {"confidence": result.confidence, "doubt": -doubt, "entropy": -ambiguity}
        )


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The precursor's gates (docs/method.md, section 3): an image that passes any one of them is answered fast.

    The score is the slack of the best gate, so images can be ranked; a slack of 0 or more passes. The precursor compares the first
    choices of the two modalities by spelling. Here they agree when they are the same class.
    """

    name = "gates"

    certain: tuple[float, float]  # least probability and margin of the first candidate
    agreed: float  # least share that either modality gives its own first choice, if both choose the same class
    overlap: float  # least probability of the first candidate, if the modalities' first three have a class in common
    bound: float  # least lower confidence bound of the class's history
    close: tuple[float, float]  # least probability and margin, if both modalities choose the same class
    temperature: float  # of each modality's own softmax
    eta: float
    alpha: float

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        return [self._decide(result) for result in results]

    def _decide(self, result: FastResult) -> Decision:
        p, margin = result.top.probability, result.margin
        agreement = 0.0 if result.agreement else -1.0
        common = 0.0 if _first_three(result, "image_rank") & _first_three(result, "text_rank") else -1.0
        surest = min(_share(result, "image_score", self.temperature), _share(result, "text_score", self.temperature))
        slack = {
            "certain": min(p - self.certain[0], margin - self.certain[1]),
            "agreed": min(agreement, surest - self.agreed),
            "overlap": min(common, p - self.overlap),
            "bound": lower_bound(result, eta=self.eta, alpha=self.alpha) - self.bound,
            "close": min(agreement, p - self.close[0], margin - self.close[1]),
        }
        score = max(slack.values())
        return Decision(score < 0, score, 0.0, slack)


def lower_bound(result: FastResult, *, eta: float, alpha: float) -> float:
    """Smoothed lower confidence bound of the class's precision, less ambiguity, in [0, 1]; 0 for a class that was never predicted."""
    history = result.history
    if not history.seen:
        return 0.0
    seen, correct = history.seen + _PRIOR, history.correct + _PRIOR * _PRIOR_MEAN
    doubt = eta * math.sqrt(math.log(max(history.total, 2)) / (2 * seen + 1))
    return min(max(correct / seen - doubt - alpha * result.ambiguity, 0.0), 1.0)


_PRIOR, _PRIOR_MEAN = 2.0, 0.6  # the precursor's Beta prior


def _first_three(result: FastResult, rank: str) -> set[str]:
    return {c.category for c in result.candidates if (getattr(c, rank) or 4) <= 3}


def _share(result: FastResult, score: str, temperature: float) -> float:
    """The largest softmax share of one modality's own scores over the candidates; 0 when it has none."""
    known = [value for c in result.candidates if (value := getattr(c, score)) is not None]
    return 1 / sum(math.exp((value - max(known)) / temperature) for value in known) if known else 0.0


def hoeffding(seen: int, total: int, scale: float) -> float:
    """How far the true accuracy may lie below the observed one: scale * sqrt(ln total / (2 seen)); `scale` for a class never seen."""
    return scale * math.sqrt(math.log(total) / (2 * seen)) if seen > 0 else scale
