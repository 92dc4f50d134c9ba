"""The last word when both systems have spoken: log-linear pooling, its one weight fitted on the support images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fgvr.types import FastResult, SlowResult

_FLOOR = 1e-6  # a class System 1 did not list is unlikely, not impossible


class LogLinearPool:
    """p(c) ~ fast(c)^(1 - weight) * slow(c)^weight over the candidates System 2 judged. weight 1 = System 2 alone."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, fast: FastResult, slow: SlowResult) -> tuple[str, float]:
        """The winning class id and its pooled probability."""
        ids = list(slow.probabilities)
        pooled = pool(_fast_shares(fast, ids), np.array([slow.probabilities[c] for c in ids]), self.weight)
        best = int(pooled.argmax())
        return ids[best], float(pooled[best])


def pool(fast: np.ndarray, slow: np.ndarray, weight: float) -> np.ndarray:
    """Normalised log-linear pool of two distributions over the same candidates."""
    logits = (1 - weight) * np.log(np.maximum(fast, _FLOOR)) + weight * np.log(np.maximum(slow, 1e-300))
    exp = np.exp(logits - logits.max())
    return exp / exp.sum()


def fit_weight(rehearsed: Sequence[tuple[FastResult, Mapping[str, float], str]]) -> float:
    """The weight in {0, .01, ..., 1} with the highest mean log p(truth); 1 when nothing was rehearsed.

    Args:
        rehearsed: per support image System 1's leave-one-out result, System 2's probabilities, and the true class id.
    """
    cases = [
        (_fast_shares(fast, list(slow)), np.array(list(slow.values())), list(slow).index(truth))
        for fast, slow, truth in rehearsed
        if truth in slow
    ]
    if not cases:
        return 1.0
    weights = np.linspace(0, 1, 101)
    gains = [np.mean([np.log(max(pool(f, s, w)[t], 1e-12)) for f, s, t in cases]) for w in weights]
    return float(weights[int(np.argmax(gains))])


def _fast_shares(fast: FastResult, ids: Sequence[str]) -> np.ndarray:
    known = {candidate.category: candidate.probability for candidate in fast.candidates}
    return np.array([known.get(category, 0.0) for category in ids])
