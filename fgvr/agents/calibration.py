"""The calibrated trigger: the probability that System 1 is right, learned from leave-one-out retrieval on the support images.

Confidence, class history and ambiguity enter a logistic regression, and its threshold is chosen for a target. A slow rate or a precision
is an estimate from out-of-fold support images. A risk is guaranteed (risk_control.py) on calibration images from which nothing else has
learned. docs/method.md, section 3, has the equations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fgvr.agents import risk_control
from fgvr.agents.risk_control import NOTHING, Form, RiskGuarantee
from fgvr.agents.targets import Target
from fgvr.errors import ConfigError
from fgvr.types import Abstention, Decision, FastResult, History, Prediction
from fgvr.utils.lazy import Lazy

FEATURES = ("confidence", "margin", "agreement", "history", "ambiguity")
ONE_SHOT = (
    "trigger=calibrated learns from support images that were left out, and with one image per class nothing is left: "
    "give more images (dataset.shots=2 or more; dataset.test_per_class=0 keeps none back to test), or choose another trigger "
    "(never, always, random, sare, gates)"
)
_PRIOR_STRENGTH = 2.0  # a class's history counts as if two more predictions of average precision had been seen


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the threshold does to out-of-fold support images: an estimate, not a guarantee."""

    slow_rate: float
    precision: float  # share right among those answered fast
    n: int

    def __str__(self) -> str:
        fast = f"top-1 accuracy {self.precision:.2f} on the others"
        return f"expects to doubt {self.slow_rate:.0%} of the images, {fast} (leave-one-out estimate, n={self.n})"


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
    """A fitted trigger, which escalates an image iff P(System 1 is right) is below the threshold."""

    name = "calibrated"

    def __init__(self, model: Logistic, threshold: float, expectation: Expectation | RiskGuarantee) -> None:
        self.model, self.threshold, self.expectation = model, threshold, expectation

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        table = features(results)
        rows = zip(self.model.probability(table).tolist(), self.model.terms(table).tolist(), strict=True)
        return [Decision(score < self.threshold, score, self.threshold, self._named(terms)) for score, terms in rows]

    def _named(self, terms: Sequence[float]) -> dict[str, float]:
        """Without a feature that was the same for every support image, such as agreement where there is one modality: its weight is 0."""
        named = zip(FEATURES, terms, self.model.weights, strict=True)
        return {"base_rate": self.model.intercept, **{name: term for name, term, weight in named if weight}}


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """System 1's results on labelled images, and whether each result was right."""

    results: Sequence[FastResult]
    right: Sequence[bool] | np.ndarray


class Calibrator:
    """The policy `trigger=calibrated` before it is fitted to a knowledge base."""

    name = "calibrated"

    def __init__(self, *, target: str, form: Form = "joint", abstain: str | None = None) -> None:
        self.target = Target.parse(target)
        self.abstain = None if abstain is None else Target.parse(abstain, key="trigger.abstain")
        self.form: Form = form

    def fit(self, support: Evidence, groups: Sequence[int], calibration: Evidence | None = None) -> Calibrated:
        """Learn from leave-one-out results.

        Args:
            support: one result per support image; its history must not count the image itself.
            groups: images of one group are left out together when scores for the threshold are made.
            calibration: for a risk target: images that no prototype, description, rule or weight has met.
        """
        table, right = features(support.results), np.asarray(support.right, bool)
        model, target = fit(table, right), self.target
        if target.kind == "risk" and calibration is not None and self.form == "joint":
            scores = np.empty(0)  # only the rungs of `selective` need out-of-fold scores
        else:
            scores = out_of_fold(table, right, groups)
        if target.kind == "risk":
            judged, truth = scores, right
            if calibration is not None:
                judged, truth = model.probability(features(calibration.results)), np.asarray(calibration.right, bool)
            found = risk_control.certify(self.form, judged, truth, scores, target.value, target.delta)
            return Calibrated(model, found.threshold, replace(found, held_out=calibration is not None))
        threshold = choose_threshold(scores, right, target)
        fast = scores >= threshold
        fast_precision = float(right[fast].mean()) if fast.any() else 1.0
        return Calibrated(model, threshold, Expectation(float(1 - fast.mean()), fast_precision, len(table)))


def out_of_fold(table: np.ndarray, right: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """P(right) of each image, (n,), by a model that has seen none of its group.

    Raises:
        ConfigError: all images are one group, so nothing is left to learn from.
    """
    group, scores = np.asarray(groups), np.empty(len(table))
    if len(set(groups)) < 2:
        raise ConfigError(ONE_SHOT)
    for held_out in np.unique(group):
        out = group == held_out
        scores[out] = fit(table[~out], right[~out]).probability(table[out])
    return scores


class Deferred:
    """A trigger that is fitted when it is first asked. Fitting may need an encoder, and making a recognizer must load nothing."""

    name = "calibrated"

    def __init__(self, fit: Callable[[], Calibrated]) -> None:
        self._fitted = Lazy(fit)

    @property
    def expectation(self) -> Expectation | RiskGuarantee:
        return self._fitted().expectation

    def __call__(self, results: Sequence[FastResult]) -> list[Decision]:
        return self._fitted()(results)


def features(results: Sequence[FastResult]) -> np.ndarray:
    """(n, F) float64, columns as in FEATURES."""
    rows = [[r.top.probability, r.margin, float(r.agreement), precision(r.history), r.ambiguity] for r in results]
    table = np.array(rows, float).reshape(-1, len(FEATURES))
    p = np.clip(table[:, 0], 1e-6, 1 - 1e-6)
    table[:, 0] = np.log(p / (1 - p))  # log-odds
    return table


def precision(history: History) -> float:
    """Smoothed share of right predictions of this class; one half for a class that was never predicted."""
    return (history.correct + _PRIOR_STRENGTH / 2) / (history.seen + _PRIOR_STRENGTH)


def fit(table: np.ndarray, right: np.ndarray) -> Logistic:
    """The trigger's regression. History that would speak against itself has no weight (ADR 41): in a class of few images the one that
    failed sees the best history, since its own outcome is left out of it.

    Args: table: (n, F), columns as in FEATURES.
    """
    model, history = fit_logistic(table, right), FEATURES.index("history")
    if model.weights[history] >= 0:
        return model
    table = table.copy()
    table[:, history] = 0
    return fit_logistic(table, right)


def fit_logistic(table: np.ndarray, outcome: np.ndarray) -> Logistic:
    """Logistic regression with a ridge of 1 on the standardised features, by damped Newton steps (Boyd and Vandenberghe, Convex
    Optimization, algorithm 9.5). The intercept is not shrunk; one imagined success and one failure keep it finite when every outcome is the
    same. Equal to scikit-learn's within 1e-8, whose import would take more than all else that an evaluation from the store does (ADR 42).
    """
    mean, scale = table.mean(axis=0), table.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    rows = np.vstack([(table - mean) / scale, np.zeros((2, table.shape[1]))])
    design, true = np.column_stack([np.ones(len(rows)), rows]), np.append(np.asarray(outcome, float), [0.0, 1.0])
    ridge, weights = np.append(0.0, np.ones(table.shape[1])), np.zeros(design.shape[1])

    def loss(at: np.ndarray) -> float:
        z = design @ at
        return float((np.logaddexp(0, z) - true * z).sum() + ridge @ at**2 / 2)

    for _ in range(100):
        p = np.exp(-np.logaddexp(0, -design @ weights))
        gradient = design.T @ (p - true) + ridge * weights
        step = np.linalg.solve((design.T * (p * (1 - p))) @ design + np.diag(ridge), gradient)
        decrement, length = gradient @ step, 1.0
        while decrement > 1e-9 and loss(weights - length * step) > loss(weights) - 1e-4 * length * decrement:
            length /= 2
        weights = weights - length * step
        if decrement < 1e-18:
            break
    return Logistic(mean, scale, weights[1:], float(weights[0]))


def choose_threshold(scores: np.ndarray, right: np.ndarray, target: Target) -> float:
    """The lowest threshold that reaches a fast precision, or the one that escalates the wanted share of images."""
    ordered = np.sort(scores)
    if target.kind == "precision":
        return next((float(t) for t in ordered if right[scores >= t].mean() >= target.value), NOTHING)
    slow = round(target.value * len(ordered))
    if slow >= len(ordered):
        return NOTHING
    return float((ordered[slow - 1] + ordered[slow]) / 2) if slow else 0.0


# --- abstention: a final answer is given only where it is certain enough for a guarantee about risk --------------------------------
#
# The threshold comes from the whole recognizer's answers on calibration images. The trigger must not have learned from those images, or
# the guarantee would not hold.


def certainty(prediction: Prediction) -> float:
    """In [0, 1]: of a fast answer the trigger's P(System 1 is right), so its score must be a probability; of a slow one the fused one."""
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
    return replace(risk_control.certify(form, scores, right, expected, epsilon, delta), final=True)
