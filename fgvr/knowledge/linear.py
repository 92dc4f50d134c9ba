"""A linear classifier on frozen features of few shots: class means seen through the shrunken covariance within classes.

Support vectors are centred on their mean and scaled to length 1. Class c then scores a query x by the linear discriminant
`x . w_c - m_c . w_c / 2` with w_c = S^-1 m_c, where m_c is the class's mean. S = (1 - a) W + a tr(W)/d I is the covariance W within
classes, shrunken by a towards a sphere (Friedman 1989); a = 1 is the nearest mean. Directions in which images of one class differ count
less than those that tell classes apart. Everything is in closed form, so leaving images out means solving again.

Scores have the scale of the prototypes' cosines. Divided by the base's temperature and softmaxed they are probabilities. Their one scale
is fitted on images that were left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgvr.knowledge.prototypes import Prototypes, Similarities, index_within_class, unit

MOST_FOLDS = 10
_LEAST = 1e-3  # shrinkage; below, S may have no inverse
_SCALES = np.geomspace(1e-3, 10.0, 81)  # tried for the probabilities, relative to discriminants as they are


@dataclass(frozen=True, slots=True, eq=False)
class Discriminant:
    """A fitted classifier: (B, d) unit vectors -> (B, C) scores, NaN for a class without images."""

    centre: np.ndarray  # (d,)
    weights: np.ndarray  # (d, C)
    biases: np.ndarray  # (C,)

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        return unit(queries - self.centre).astype(np.float64) @ self.weights + self.biases


def fit_discriminant(shots: np.ndarray, owners: np.ndarray, classes: int, shrinkage: float) -> Discriminant:
    """The classifier of support vectors (N, d) with class indices (N,)."""
    centre = shots.mean(axis=0) if len(shots) else np.zeros(shots.shape[1], np.float32)
    vectors = unit(shots - centre).astype(np.float64)
    counts = np.bincount(owners, minlength=classes)
    means = np.zeros((classes, shots.shape[1]))
    np.add.at(means, owners, vectors)
    means /= np.maximum(counts, 1)[:, None]
    residuals = vectors - means[owners]
    freedom = max(1, len(shots) - int((counts > 0).sum()))
    sphere = float((residuals**2).sum()) / freedom / shots.shape[1]
    share = max(shrinkage, _LEAST)
    ridge = share * sphere if sphere > 0 else 1.0  # one image per class: nothing is known within classes
    weights = _solve(residuals * np.sqrt((1 - share) / freedom), ridge, means.T)
    biases = np.where(counts > 0, -0.5 * np.einsum("cd,dc->c", means, weights), np.nan)
    return Discriminant(centre, weights, biases)


def _solve(factors: np.ndarray, ridge: float, right: np.ndarray) -> np.ndarray:
    """(F^T F + ridge I)^-1 R for factors (N, d), by the smaller of both matrices (Woodbury)."""
    n, d = factors.shape
    if n < d:
        inner = np.linalg.solve(factors @ factors.T + ridge * np.eye(n), factors @ right)
        return (right - factors.T @ inner) / ridge
    return np.linalg.solve(factors.T @ factors + ridge * np.eye(d), right)


class LinearClassifier:
    """What `Prototypes` is to System 1, with the discriminant in the place of the cosines with class means; words stay as they are."""

    def __init__(self, prototypes: Prototypes, *, shrinkage: float) -> None:
        self._known, self._shrinkage = prototypes, shrinkage
        self._fitted = self._fit(np.ones(len(prototypes.shots), bool))
        left_out = self._left_out()
        self._scale = fit_scale(left_out, prototypes.owners) * prototypes.temperature
        self._left_out_scores = (left_out * self._scale).astype(np.float32)

    def compare(self, queries: np.ndarray) -> Similarities:
        """Scores of unit queries (B, d) with every class."""
        words = self._known.compare(queries)
        return Similarities((self._fitted(queries) * self._scale).astype(np.float32), words.text, words.name)

    def leave_one_out(self) -> Similarities:
        """Each support image by a classifier that has met neither it nor a copy of it; one is fitted for each fold of a class's images."""
        words = self._known.leave_one_out()
        return Similarities(self._left_out_scores, words.text, words.name)

    def _fit(self, among: np.ndarray) -> Discriminant:
        known = self._known
        return fit_discriminant(known.shots[among], known.owners[among], len(known.ids), self._shrinkage)

    def _left_out(self) -> np.ndarray:
        scores = np.full((len(self._known.shots), len(self._known.ids)), np.nan)
        folds = folds_of(self._known.owners.tolist(), self._known.families)
        for fold in np.unique(folds):
            out = folds == fold
            scores[out] = self._fit(~out)(self._known.shots[out])
        return scores


def folds_of(owners: Sequence[int], families: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """(N,) which images are left out together: one of a class at most, its copies with it, and never all classes' first images at once."""
    places = index_within_class(owners, families)
    count = min(MOST_FOLDS, max(2, max(places, default=0) + 1))
    return (np.array(places, np.int64) + np.array(owners, np.int64)) % count


def fit_scale(scores: np.ndarray, owners: np.ndarray) -> float:
    """The factor with which softmaxed scores (N, C) give the true classes the highest likelihood; unknown classes do not count."""
    known = ~np.isnan(scores[np.arange(len(scores)), owners])
    if not known.any():
        return 1.0
    table, truth = np.where(np.isnan(scores[known]), -np.inf, scores[known]), owners[known]
    table = table - table.max(axis=1, keepdims=True)
    own = table[np.arange(len(table)), truth]
    losses = [float((np.log(np.exp(table * scale).sum(axis=1)) - own * scale).mean()) for scale in _SCALES]
    return float(_SCALES[int(np.argmin(losses))])
