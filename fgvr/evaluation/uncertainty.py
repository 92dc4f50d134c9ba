"""How far a score may be trusted. Each interval says what it is over: these images, new classes, new seeds."""

from __future__ import annotations

import numpy as np

DRAWS = 2000
_BLOCK = 4_000_000  # resampled entries held at once

Interval = tuple[float, float]


def image_bootstrap(values: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over images: other images of *these* classes (Efron and Tibshirani 1993, ch. 13)."""
    return _bootstrap(np.asarray(values, float), None, level, draws, seed)


def class_bootstrap(values: np.ndarray, labels: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile bootstrap that draws whole classes: *new classes* of this kind. Wider, as images of one class fail together."""
    _, member = np.unique(labels, return_inverse=True)
    return _bootstrap(np.bincount(member, weights=values), np.bincount(member).astype(float), level, draws, seed)


def t_interval(means: np.ndarray, *, level: float = 0.95) -> Interval:
    """Student's t on one mean per seed or world: *new seeds*. Infinite with a single one."""
    from scipy.special import stdtrit  # here, as its import costs more than everything else in this package

    means = np.asarray(means, float)
    centre, n = float(np.mean(means)), len(means)
    if n < 2:
        return float("-inf"), float("inf")
    half = float(stdtrit(n - 1, 0.5 + level / 2) * np.std(means, ddof=1) / np.sqrt(n))
    return centre - half, centre + half


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact two-sided p that two runs on the same images are equally good: a binomial test on the images only one got right."""
    from scipy.special import bdtr

    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))) if only_a + only_b else 1.0


def _bootstrap(sums: np.ndarray, sizes: np.ndarray | None, level: float, draws: int, seed: int) -> Interval:
    """Percentile interval of sum(sums) / sum(sizes) over resampled units; sizes of None: 1 each."""
    rng, n = np.random.default_rng(seed), len(sums)
    block = max(1, _BLOCK // n)
    means = []
    for start in range(0, draws, block):
        drawn = rng.integers(0, n, (min(block, draws - start), n))
        means.append(np.take(sums, drawn).sum(1) / (n if sizes is None else np.take(sizes, drawn).sum(1)))
    low, high = np.quantile(np.concatenate(means), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
