"""Selects the smallest set of names that explains the pictures. Pure functions on arrays.

Each guess (a name, or a description) is a component of a mixture; the MLLM gives the log-likelihood of its words for each picture. A
mixture of all guesses fits best, but keeps a name for every error. So each component has a complexity penalty in nats, its code length
(Rissanen 1978; as penalty of mixtures Figueiredo and Jain 2002), and components that save less are removed, cheapest first. The number of
components that remain is the number of kinds: nobody has to know it.

Shapes: N pictures, M hypotheses, K kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

UNJUDGED = 20.0
"""Nats below the worst judged hypothesis of a picture: where those stand that were not worth asking about."""
_ROUNDS = 12
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which hypotheses remained, and whose pictures are whose."""

    indices: np.ndarray  # (K,) int64, into the M hypotheses
    owners: np.ndarray  # (N,) int64, into `indices`
    certainty: np.ndarray  # (N,) posterior of the owner
    penalty: float  # nats


def complexity_penalty(hypotheses: int, pictures: int) -> float:
    """ln M to say which one it is, ½ ln N for its share: nats."""
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
        nats: (N, M) log-likelihood of hypothesis m given picture n, none NaN (`fill`).
        votes: (M,) how often each was guessed; where the shares start.
        penalty: a hypothesis stays if taking it away would cost the pictures together at least so much.
    """
    indices = np.arange(nats.shape[1])
    shares = (votes + 0.5) / (votes + 0.5).sum()
    while True:
        for _ in range(_ROUNDS):
            posterior = _posterior(nats[:, indices], shares)
            shares = posterior.mean(axis=0) + _TINY
            shares /= shares.sum()
        posterior = _posterior(nats[:, indices], shares)
        gone = _worthless(posterior, penalty)
        if not gone.size:
            owners = posterior.argmax(axis=1)
            used = np.unique(owners)
            if len(used) < len(indices):  # a share spread over others' pictures names nothing
                indices, shares = indices[used], shares[used] / shares[used].sum()
                continue
            return Selection(indices, owners, posterior.max(axis=1), penalty)
        left = np.setdiff1d(np.arange(len(indices)), gone)
        indices, shares = indices[left], shares[left] / shares[left].sum()


def _posterior(nats: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(N, K) rows of sum 1."""
    logits = nats + np.log(shares)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _worthless(posterior: np.ndarray, penalty: float) -> np.ndarray:
    """Indices of hypotheses that can go together for less than one penalty: without those of mass r, a picture loses -ln(1 - r) nats."""
    if posterior.shape[1] == 1:
        return np.zeros(0, np.int64)
    alone = -np.log1p(-np.minimum(posterior, 1 - _TINY)).sum(axis=0)
    order = np.argsort(alone, kind="stable")[:-1]  # somebody must stay
    mass = np.cumsum(posterior[:, order], axis=1)
    # The shares of the others grow to fill the gap, which the pictures gain.
    gain = -len(posterior) * np.log1p(-np.minimum(mass.mean(axis=0), 1 - _TINY))
    together = -np.log1p(-np.minimum(mass, 1 - _TINY)).sum(axis=0) - gain
    return order[: np.searchsorted(np.maximum.accumulate(together), penalty)]
