"""Selects the smallest set of names that explains the images. Pure functions on arrays.

Each guess (a name or a description) is one component of a mixture, and the MLLM gives the log-likelihood of its words for each image. A
mixture of all guesses fits best, but it keeps a name for every error. So each component has a complexity penalty in nats, its code length
(Rissanen 1978; for mixtures Figueiredo and Jain 2002). Components that save less are removed, cheapest first. The number of components
that remain is the number of kinds, so nobody has to know it.

Shapes: N images, M hypotheses, K kept.
"""

import math
from dataclasses import dataclass

import numpy as np

from fgvr.agents.fusion import softmax

UNJUDGED = 20.0
"""Nats below an image's worst judged hypothesis, for the hypotheses that were not worth asking about."""
_ROUNDS = 12
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The hypotheses that remained, and the owner of each image."""

    indices: np.ndarray  # (K,) int64, into the M hypotheses
    owners: np.ndarray  # (N,) int64, into `indices`
    certainty: np.ndarray  # (N,) posterior of the owner


def complexity_penalty(hypotheses: int, pictures: int) -> float:
    """Nats that one component costs: ln M to name it, and half of ln N for its share."""
    return math.log(max(hypotheses, 2)) + 0.5 * math.log(max(pictures, 2))


def fill(nats: np.ndarray) -> np.ndarray:
    """(N, M) with every NaN (not judged) put `UNJUDGED` below the worst judged one of its row; a row without any judgement becomes flat."""
    judged = ~np.isnan(nats)
    worst = np.where(judged, nats, np.inf).min(axis=1)
    floor = np.where(np.isfinite(worst), worst - UNJUDGED, 0.0)
    return np.where(judged, nats, floor[:, None])


def select_mixture(nats: np.ndarray, votes: np.ndarray, penalty: float) -> Selection:
    """Backward elimination in a mixture whose components are fixed and whose shares are fitted (EM).

    Args:
        nats: (N, M) log-likelihood of hypothesis m given image n, none NaN (`fill`).
        votes: (M,) how often each hypothesis was guessed; the shares start there.
        penalty: a hypothesis stays if removing it would cost the images together at least so much.
    """
    indices = np.arange(nats.shape[1])
    shares = (votes + 0.5) / (votes + 0.5).sum()
    while True:
        for _ in range(_ROUNDS):
            shares = softmax(nats[:, indices] + np.log(shares)).mean(axis=0) + _TINY
            shares /= shares.sum()
        posterior = softmax(nats[:, indices] + np.log(shares))  # (N, K)
        kept = np.setdiff1d(np.arange(len(indices)), _removable(posterior, penalty))
        if len(kept) == len(indices):
            owners = posterior.argmax(axis=1)
            kept = np.unique(owners)  # a component that owns no image names nothing
            if len(kept) == len(indices):
                return Selection(indices, owners, posterior.max(axis=1))
        indices, shares = indices[kept], shares[kept] / shares[kept].sum()


def _removable(posterior: np.ndarray, penalty: float) -> np.ndarray:
    """Components that can go together for less than one penalty. Without components of mass r an image loses -ln(1 - r) nats."""
    if posterior.shape[1] == 1:
        return np.zeros(0, np.int64)
    alone = -np.log1p(-np.minimum(posterior, 1 - _TINY)).sum(axis=0)
    order = np.argsort(alone, kind="stable")[:-1]  # one component must stay
    mass = np.cumsum(posterior[:, order], axis=1)
    # The shares of the others grow to fill the gap, which the images gain.
    gain = -len(posterior) * np.log1p(-np.minimum(mass.mean(axis=0), 1 - _TINY))
    together = -np.log1p(-np.minimum(mass, 1 - _TINY)).sum(axis=0) - gain
    return order[: np.searchsorted(np.maximum.accumulate(together), penalty)]
