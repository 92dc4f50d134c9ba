"""What both systems answer leave-one-out on the support images: System 1's counts per class (no bounds), and System 2's log-likelihoods."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fgvr.types import History


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Counts per class: predicted and correct (precision), occurred (recall), and the confusions."""

    ids: tuple[str, ...]
    confusion: np.ndarray  # (C, C) int64, rows = truth, columns = predicted

    @classmethod
    def count(cls, ids: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray) -> "Statistics":
        """From class indices (N,) of truth and leave-one-out prediction."""
        confusion = np.zeros((len(ids), len(ids)), np.int64)
        np.add.at(confusion, (truth, predicted), 1)
        return cls(ids, confusion)

    @property
    def predicted(self) -> np.ndarray:
        return self.confusion.sum(axis=0)

    @property
    def correct(self) -> np.ndarray:
        return np.diagonal(self.confusion).copy()

    @property
    def occurred(self) -> np.ndarray:
        return self.confusion.sum(axis=1)

    def histories(self) -> tuple[History, ...]:
        """One record per class, in the order of `ids`."""
        total = int(self.confusion.sum())
        return tuple(History(int(s), int(c), total) for s, c in zip(self.predicted, self.correct, strict=True))

    def left_out(self, truth: np.ndarray, predicted: np.ndarray, families: np.ndarray | None = None) -> list[History]:
        """For each image (N,): the history of its predicted class, without the image and its copies (the same family)."""
        _, family = np.unique(np.arange(len(truth)) if families is None else families, return_inverse=True)
        _, alike = np.unique(family * len(self.ids) + predicted, return_inverse=True)  # copies that were taken for the same class
        seen = self.predicted[predicted] - np.bincount(alike)[alike]
        correct = self.correct[predicted] - np.bincount(alike, weights=truth == predicted)[alike].astype(np.int64)
        total = int(self.confusion.sum()) - np.bincount(family)[family]
        return [History(*counts) for counts in zip(seen.tolist(), correct.tolist(), total.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class LeaveOneOutScores:
    """System 2's: nats of the leave-one-out shortlist of each support image. The build makes them; the fusion weight is fitted on them."""

    target: str  # slow.target they were scored with
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # image sha256 -> class id -> nats
