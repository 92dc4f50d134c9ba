"""The prototype library: what each class looks like, as vectors. Only matrix products; no models, no files.

Shapes: C classes, N support images, B queries, d the encoder's width. Rows are unit vectors. A class without a usable text has a zero
row, so that a failed description never scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Similarities:
    """Cosines of B images with C classes by modality; NaN where a class has no prototype of that kind."""

    image: np.ndarray  # (B, C)
    text: np.ndarray  # (B, C) against the descriptions
    name: np.ndarray | None = None  # (B, C) against the class-name prompts


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Three prototypes per class, and the support vectors that they come from."""

    ids: tuple[str, ...]  # (C,) class ids, the order of every class axis
    shots: np.ndarray  # (N, d) support image vectors
    owners: np.ndarray  # (N,) int64 class index of each support image
    folds: np.ndarray  # (N,) int64, 0 or 1: the half of its class's shots that an image belongs to
    text: np.ndarray  # (C, d) descriptions
    fold_text: np.ndarray  # (2, C, d) descriptions written without the images of fold 0, of fold 1
    name: np.ndarray | None = None  # (C, d) class-name prompts
    temperature: float = 0.01  # the encoder's own, 1 / logit_scale
    families: np.ndarray | None = None  # (N,) int64: images of a class with the same number are copies of each other; None: there are none

    @cached_property
    def image(self) -> np.ndarray:
        """(C, d) re-normalised means of the support vectors (docs/method.md, section 1)."""
        return unit(self._sums())

    def _sums(self) -> np.ndarray:
        sums = np.zeros((len(self.ids), self.shots.shape[1]), np.float32)
        np.add.at(sums, self.owners, self.shots)
        return sums

    def _copies(self) -> np.ndarray:
        """(N, d): the sum of each support image and its copies in its class."""
        if self.families is None:
            return self.shots
        _, family = np.unique(self.families, return_inverse=True)
        sums = np.zeros((family.max(initial=-1) + 1, self.shots.shape[1]), np.float32)
        np.add.at(sums, family, self.shots)
        return sums[family]

    def compare(self, queries: np.ndarray) -> Similarities:
        """Cosines of unit queries (B, d) with every class."""
        name = None if self.name is None else _cosines(queries, self.name)
        return Similarities(_cosines(queries, self.image), _cosines(queries, self.text), name)

    def leave_one_out(self) -> Similarities:
        """Each support image against prototypes that contain neither the image nor a copy of it, (N, C).

        The mean of its own class comes in closed form from the sum of shots. The description of its own class is the one that was
        written without the image's fold.
        """
        met = self.compare(self.shots)
        rows = np.arange(len(self.shots))
        image, text = met.image.copy(), met.text.copy()
        image[rows, self.owners] = np.sum(self.shots * _or_nan(unit(self._sums()[self.owners] - self._copies())), axis=1)
        text[rows, self.owners] = np.sum(self.shots * _or_nan(self.fold_text[self.folds, self.owners]), axis=1)
        return Similarities(image, text, met.name)


def halves(owners: Sequence[int], families: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Fold of each support image: within a class, images alternate between two halves. Copies of each other share a fold."""
    return np.array(index_within_class(owners, families), np.int64) % 2


def index_within_class(owners: Sequence[int], families: Sequence[int] | np.ndarray | None = None) -> list[int]:
    """Index of each support image within its class. Copies of each other count as one image."""
    known: dict[int, dict[int, int]] = {}
    places = []
    for owner, family in zip(owners, range(len(owners)) if families is None else families, strict=True):
        own = known.setdefault(owner, {})
        places.append(own.setdefault(int(family), len(own)))
    return places


def _or_nan(prototypes: np.ndarray) -> np.ndarray:
    return np.where(np.any(prototypes != 0, axis=-1, keepdims=True), prototypes, np.nan)


def _cosines(queries: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    scores = queries @ prototypes.T
    scores[:, ~np.any(prototypes != 0, axis=1)] = np.nan
    return scores
