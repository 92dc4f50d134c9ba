"""The calibrated trigger: how likely is System 1 right, learned from leave-one-out retrieval on the support images.

The published rule's three ingredients (confidence, class history, ambiguity) enter a logistic model; its threshold is chosen for a
target. A slow rate or a precision is an estimate from out-of-fold support images, and is reported as one. A risk is controlled
(risk_control.py) on calibration images that nothing has learned from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fgvr.agents import risk_control
from fgvr.agents.risk_control import NOTHING, RiskGuarantee
from fgvr.agents.targets import Target
from fgvr.errors import ConfigError
from fgvr.types import Decision, FastResult, History

FEATURES = ("confidence", "margin", "agreement", "history", "ambiguity")
ONE_SHOT = (
    "trigger=calibrated learns from support images that were left out, and with one image per class nothing is left: "
    "write dataset.shots=2 or more, or another trigger (never, always, random, sare, gates)"
)
_PRIOR_STRENGTH = 2.0  # a class's history counts as if two more predictions of average precision had been seen
_RIDGE = 1.0  # on standardised features; keeps separable support sets finite


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the threshold does to out-of-fold support images: an estimate, not a guarantee."""

    slow_rate: float
    precision: float  # share right among those answered fast
    n: int

    def __str__(self) -> str:
        return f"expects slow rate {self.slow_rate:.2f}, fast precision {self.precision:.2f} (leave-one-out estimate, n={self.n})"


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """P(right | features) = sigmoid(intercept + weights . standardised features)."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float

    def terms(self, features: np.ndarray) -> np.ndarray:
        """(n, F) contributions in log-odds."""
        return (features - self.mean) / self.scale * self.weights

    def probability(self, features: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(self.intercept + self.terms(features).sum(axis=1))))


class Calibrated:
    """A fitted trigger: escalate iff P(System 1 is right) is below the threshold."""

    name = "calibrated"

    def __init__(self, model: Logistic, threshold: float, expectation: Expectation | RiskGuarantee) -> None:
        self.model, self.threshold, self.expectation = model, threshold, expectation

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        table = features(results)
        scores, terms = self.model.probability(table), self.model.terms(table)
        return [
            Decision(bool(score < self.threshold), float(score), self.threshold, _named(row, self.model.intercept))
            for score, row in zip(scores, terms, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """System 1's results on labelled images and whether each was right."""

    results: Sequence[FastResult]
    right: Sequence[bool] | np.ndarray


class Calibrator:
    """The policy `trigger=calibrated` before it has met a knowledge base."""

    name = "calibrated"

    def __init__(self, *, target: str, form: str = "joint", abstain: str | None = None) -> None:
        self.target = Target.parse(target)
        self.abstain = None if abstain is None else Target.parse(abstain, key="trigger.abstain")
        if self.abstain is not None and self.abstain.kind != "risk":
            raise ConfigError(f"trigger.abstain={abstain!r}: a promise about final answers is a risk, e.g. risk:0.1@0.1")
        if self.abstain is not None and self.target.kind == "risk":
            raise ConfigError(
                f"trigger.target={target!r} and trigger.abstain={abstain!r} would learn from the same calibration images, and neither "
                "promise would hold: write trigger.target=slow_rate:0.6"
            )
        if form not in risk_control.FORMS:
            raise ConfigError(f"trigger.form={form!r}: write {' or '.join(risk_control.FORMS)}")
        self.form: risk_control.Form = form

    def fit(self, support: Evidence, groups: Sequence[int], calibration: Evidence | None = None) -> Calibrated:
        """Learn from leave-one-out results.

        Args:
            support: one result per support image; their histories must not count the image itself.
            groups: images of one group are left out together when scores for the threshold are made.
            calibration: for a risk target: images that no prototype, description, rule or weight has met.
        """
        table, right = features(support.results), np.asarray(support.right, bool)
        model = fit_logistic(table, right)
        if self.target.kind == "risk":
            guarantee = self._guarantee(model, partial(out_of_fold, table, right, groups), right, calibration)
            return Calibrated(model, guarantee.threshold, guarantee)
        scores = out_of_fold(table, right, groups)
        threshold = choose_threshold(scores, right, self.target)
        fast = scores >= threshold
        precision = float(right[fast].mean()) if fast.any() else 1.0
        return Calibrated(model, threshold, Expectation(float(1 - fast.mean()), precision, len(table)))

    def _guarantee(
        self, model: Logistic, left_out: Callable[[], np.ndarray], right: np.ndarray, calibration: Evidence | None
    ) -> RiskGuarantee:
        epsilon, delta = self.target.value, self.target.delta
        if calibration is None:
            scores = left_out()
        else:
            scores, right = model.probability(features(calibration.results)), np.asarray(calibration.right, bool)
        if self.form == "joint":
            guarantee = risk_control.joint(scores, right, epsilon, delta)
        else:
            guarantee = risk_control.selective(scores, right, epsilon, delta, risk_control.ladder(left_out(), len(scores), epsilon, delta))
        return replace(guarantee, held_out=calibration is not None)


def out_of_fold(table: np.ndarray, right: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """P(right) of each image, (n,), by a model that has seen none of its group.

    Raises:
        ConfigError: all are one group, so nothing is left to learn from (and retrieval without a class's only image cannot be right).
    """
    group, scores = np.asarray(groups), np.empty(len(table))
    if len(set(groups)) < 2:
        raise ConfigError(ONE_SHOT)
    for held_out in np.unique(group):
        out = group == held_out
        scores[out] = fit_logistic(table[~out], right[~out]).probability(table[out])
    return scores


class Deferred:
    """A trigger that is fitted when it is first asked: fitting may need an encoder, and making a recognizer loads nothing."""

    name = "calibrated"

    def __init__(self, fit: Callable[[], Calibrated]) -> None:
        self._fit = fit
        self._lock = threading.Lock()
        self._fitted: Calibrated | None = None

    @property
    def fitted(self) -> Calibrated:
        with self._lock:
            if self._fitted is None:
                self._fitted = self._fit()
            return self._fitted

    @property
    def expectation(self) -> Expectation | RiskGuarantee:
        return self.fitted.expectation

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        return self.fitted(results)


def features(results: Sequence[FastResult]) -> np.ndarray:
    """(n, F) float64, columns as in FEATURES."""
    return np.array(
        [[_log_odds(r.top.probability), r.margin, float(r.agreement), precision(r.history), r.ambiguity] for r in results], float
    ).reshape(-1, len(FEATURES))


def precision(history: History) -> float:
    """Smoothed share of right predictions of this class; a class never predicted gets one half."""
    return (history.correct + _PRIOR_STRENGTH / 2) / (history.seen + _PRIOR_STRENGTH)


def fit_logistic(table: np.ndarray, outcome: np.ndarray) -> Logistic:
    """Ridge logistic regression by Newton's method (iteratively reweighted least squares); the intercept is not shrunk."""
    mean, scale = table.mean(axis=0), table.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    design = np.column_stack([np.ones(len(table)), (table - mean) / scale])
    # One imagined success and failure keep the intercept finite when every outcome is the same.
    design = np.vstack([design, np.eye(1, design.shape[1]), np.eye(1, design.shape[1])])
    outcome = np.concatenate([np.asarray(outcome, float), [0.0, 1.0]])
    penalty = np.diag([0.0] + [_RIDGE] * table.shape[1])
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (outcome - p) - penalty @ weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + penalty
        step = np.linalg.solve(hessian, gradient)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return Logistic(mean, scale, weights[1:], float(weights[0]))


def choose_threshold(scores: np.ndarray, right: np.ndarray, target: Target) -> float:
    """The lowest threshold that reaches a fast precision, or the one that sends the wanted share to System 2."""
    ordered = np.sort(scores)
    if target.kind == "slow_rate":
        slow = round(target.value * len(ordered))
        if slow >= len(ordered):
            return NOTHING
        return float((ordered[slow - 1] + ordered[slow]) / 2) if slow else 0.0
    for threshold in ordered:
        if right[scores >= threshold].mean() >= target.value:
            return float(threshold)
    return NOTHING


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return float(np.log(p / (1 - p)))


def _named(row: np.ndarray, intercept: float) -> dict[str, float]:
    return {"base_rate": intercept, **{name: float(value) for name, value in zip(FEATURES, row, strict=True)}}
