"""How far a score may be trusted. Each interval says what it is over: these images, new classes, new seeds."""

from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 2000
_BLOCK = 4_000_000  # resampled entries held at once

Interval = tuple[float, float]
Score = Callable[[np.ndarray], np.ndarray]
"""(R, n) places of drawn images -> (R,) the score of each draw."""


def image_bootstrap(values: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over images: other images of *these* classes (Efron and Tibshirani 1993, ch. 13)."""
    return image_bootstraps([mean_of(values)], len(values), level=level, draws=draws, seed=seed)[0]


def image_bootstraps(scores: Sequence[Score], n: int, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> list[Interval]:
    """The same of several scores of n images, all on the same draws."""
    rng, block = np.random.default_rng(seed), max(1, _BLOCK // n)
    drawn = (rng.integers(0, n, (min(block, draws - start), n)) for start in range(0, draws, block))
    parts = [[score(places) for score in scores] for places in drawn]
    bounds = [np.quantile(np.concatenate(found), [0.5 - level / 2, 0.5 + level / 2]) for found in zip(*parts, strict=True)]
    return [(float(low), float(high)) for low, high in bounds]


def mean_of(values: np.ndarray) -> Score:
    values = np.asarray(values, float)
    return lambda drawn: np.take(values, drawn).sum(1) / drawn.shape[1]


def mean_of_classes(values: np.ndarray, labels: np.ndarray) -> Score:
    """The mean of class means, over the classes that were drawn."""
    values, (names, member) = np.asarray(values, float), np.unique(labels, return_inverse=True)

    def score(drawn: np.ndarray) -> np.ndarray:
        shape = (len(drawn), len(names))
        cell = (np.take(member, drawn) + shape[1] * np.arange(shape[0])[:, None]).ravel()
        size = shape[0] * shape[1]
        count = np.bincount(cell, minlength=size).reshape(shape)
        total = np.bincount(cell, weights=np.take(values, drawn).ravel(), minlength=size).reshape(shape)
        return np.divide(total, count, out=np.zeros(shape), where=count > 0).sum(1) / (count > 0).sum(1)

    return score


def class_bootstrap(values: np.ndarray, labels: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile bootstrap that draws whole classes: *new classes* of this kind. Wider, as images of one class fail together."""
    sums, sizes = _by_class(values, labels)

    def score(drawn: np.ndarray) -> np.ndarray:
        return np.take(sums, drawn).sum(1) / np.take(sizes, drawn).sum(1)

    return image_bootstraps([score], len(sums), level=level, draws=draws, seed=seed)[0]


def class_bootstrap_of_class_means(values: np.ndarray, labels: np.ndarray) -> Interval:
    """The same of the mean of class means."""
    sums, sizes = _by_class(values, labels)
    return image_bootstrap(sums / sizes)


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


def _by_class(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sums, sizes) of each class."""
    _, member = np.unique(labels, return_inverse=True)
    return np.bincount(member, weights=values), np.bincount(member).astype(float)
