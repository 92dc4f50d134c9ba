"""The statistical retrieval library: how System 1 does on each class, counted on leave-one-out retrieval. Counts only, no bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fgvr.types import History


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Per class: how often it was predicted and rightly so (precision), how often it occurred (recall), and what it was taken for."""

    ids: tuple[str, ...]
    confusion: np.ndarray  # (C, C) int64, rows = truth, columns = predicted

    @classmethod
    def count(cls, ids: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray) -> Statistics:
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

    def without(self, truth: int, predicted: int) -> History:
        """The history of class `predicted` as it was before one image with this outcome was counted."""
        own = int(truth == predicted)
        total = int(self.confusion.sum())
        return History(int(self.predicted[predicted]) - 1, int(self.correct[predicted]) - own, total - 1)
