"""Accuracy against the share escalated to System 2, for any router, between the random floor and the oracle.

A router orders images by a score and escalates the lowest first. With f, s in {0, 1} for System 1 and 2 being right, escalating the set E
gives accuracy (sum f + sum over E of (s - f)) / n. A router is better the earlier it meets the images with s - f = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Accuracy when a share `rate` of the images goes to System 2; rate runs from 0 up."""

    rate: np.ndarray
    accuracy: np.ndarray

    def at(self, rate: float) -> float:
        """Accuracy at a matched slow rate, linear between the points (= a coin decides about the last image)."""
        return float(np.interp(rate, self.rate, self.accuracy))

    @property
    def area(self) -> float:
        """Area under the curve by the trapezoidal rule."""
        return float(np.trapezoid(self.accuracy, self.rate))


def curve(fast_right: np.ndarray, slow_right: np.ndarray, score: np.ndarray) -> Curve:
    """The router that escalates the lowest score first; images of equal score in random order (their mean gain each)."""
    gain = _gain(fast_right, slow_right)
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, weights=gain) / size)[group]
    return _curve(fast_right, expected[np.argsort(group, kind="stable")])


def oracle(fast_right: np.ndarray, slow_right: np.ndarray) -> Curve:
    """The ceiling: knows both outcomes, escalates first where System 2 fixes, last where it breaks."""
    return _curve(fast_right, np.sort(_gain(fast_right, slow_right))[::-1])


def chance(fast_right: np.ndarray, slow_right: np.ndarray) -> Curve:
    """The floor: a random router, in expectation the straight line from fast only to slow only."""
    return Curve(np.array([0.0, 1.0]), np.array([np.mean(fast_right), np.mean(slow_right)]))


def gap_share(fast_right: np.ndarray, slow_right: np.ndarray, score: np.ndarray) -> float:
    """Where the router's area lies between random (0) and the oracle (1); nan when System 2 changes nothing."""
    floor = chance(fast_right, slow_right).area
    gap = oracle(fast_right, slow_right).area - floor
    return (curve(fast_right, slow_right, score).area - floor) / gap if gap > 0 else float("nan")


REVIEWED = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Accuracy when a share of the images is looked at by a person who is always right: an upper bound for any System 2."""

    share: float
    ours: float  # the lowest score first
    random: float
    oracle: float  # the wrong ones first


def review_curves(fast_right: np.ndarray, score: np.ndarray) -> tuple[Curve, Curve, Curve]:
    """Ours, random and oracle when whoever looks again is always right."""
    right = np.ones(len(fast_right), bool)
    return curve(fast_right, right, score), chance(fast_right, right), oracle(fast_right, right)


def reviewed(fast_right: np.ndarray, score: np.ndarray, shares: Sequence[float] = REVIEWED) -> tuple[Reviewed, ...]:
    curves = review_curves(fast_right, score)
    return tuple(Reviewed(share, *(one.at(share) for one in curves)) for share in shares)


def _gain(fast_right: np.ndarray, slow_right: np.ndarray) -> np.ndarray:
    return np.asarray(slow_right, float) - np.asarray(fast_right, float)


def _curve(fast_right: np.ndarray, gains: np.ndarray) -> Curve:
    n = len(gains)
    return Curve(np.arange(n + 1) / n, float(np.mean(fast_right)) + np.concatenate([[0.0], np.cumsum(gains)]) / n)


@dataclass(frozen=True, slots=True)
class EqualBudget:
    """Accuracy of each router when it may send the same share of the images to System 2; `never` and `always` have budgets of their own."""

    slow_rate: float
    never: float
    random: float
    ours: float
    oracle: float
    always: float
    gap_share: float | None  # where our area lies between random (0) and oracle (1), over all budgets; None when System 2 changes nothing


def at_equal_budget(fast_right: np.ndarray, slow_right: np.ndarray, score: np.ndarray, escalated: np.ndarray) -> EqualBudget:
    """Ours is what the run did; the others are read off their curves at the run's slow rate."""
    rate = float(np.mean(escalated))
    share = gap_share(fast_right, slow_right, score)
    return EqualBudget(
        slow_rate=rate,
        never=float(np.mean(fast_right)),
        random=chance(fast_right, slow_right).at(rate),
        ours=float(np.mean(np.where(escalated, slow_right, fast_right))),
        oracle=oracle(fast_right, slow_right).at(rate),
        always=float(np.mean(slow_right)),
        gap_share=None if np.isnan(share) else share,
    )
