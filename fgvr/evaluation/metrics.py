"""Scores from arrays: accuracies, confusions, ranking quality. Pure functions; class identity is the class id."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def accuracy(right: np.ndarray) -> float:
    """Share of True."""
    return float(np.mean(right))


def among(place: np.ndarray, k: int) -> np.ndarray:
    """Whether an image's truth stands among the first k; `place` counts from 1, 0 = not ranked."""
    return (place >= 1) & (place <= k)


def top_k(place: np.ndarray, k: int) -> float:
    """Share of images whose truth stands among the first k."""
    return float(np.mean(among(place, k)))


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How one class fared."""

    category: str
    n: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n


def per_class(labels: np.ndarray, right: np.ndarray) -> list[ClassScore]:
    """Accuracy of each true class, in the order of class ids."""
    categories, member = np.unique(labels, return_inverse=True)
    counts, hits = np.bincount(member), np.bincount(member, weights=right)
    return [ClassScore(str(c), int(n), int(h)) for c, n, h in zip(categories, counts, hits, strict=True)]


def macro(labels: np.ndarray, right: np.ndarray) -> float:
    """Mean of the per-class accuracies: each class counts the same, however many images it has."""
    return float(np.mean([score.accuracy for score in per_class(labels, right)]))


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often `truth` was taken for `answer`."""

    truth: str
    answer: str
    count: int
    of: int  # images of the true class


def confusions(labels: np.ndarray, answers: np.ndarray) -> list[Confusion]:
    """All ordered confusion pairs, most frequent first, ties by class id."""
    totals = Counter(labels.tolist())
    wrong = labels != answers
    pairs = Counter(zip(labels[wrong].tolist(), answers[wrong].tolist(), strict=True))
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(truth, answer, n, totals[truth]) for (truth, answer), n in ranked]


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half (Mann-Whitney U / n1 n0); nan without both kinds."""
    positive = np.asarray(positive, bool)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if ones == 0 or zeros == 0:
        return float("nan")
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2  # mean rank of each tied group, from 1
    return float((rank[group][positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, risk): the share answered and the share of those that is wrong, answering the most confident first.

    Images of equal confidence are answered together, hence one point per distinct confidence (El-Yaniv and Wiener 2010).
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, wrong = confidence[order], ~np.asarray(right, bool)[order]
    last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    answered = np.arange(1, len(order) + 1)
    return (answered / len(order))[last], (np.cumsum(wrong) / answered)[last]


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Confidence against accuracy in bins of equally many images; `error`: mean of |accuracy - confidence| over the images."""

    confidence: np.ndarray  # (B,) mean of the bin
    accuracy: np.ndarray  # (B,)
    error: float


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> Reliability:
    """Is a confidence of .8 right in .8 of the cases? Adaptive calibration error (Nixon et al. 2019, equation 3, top label only)."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    mean = np.array([np.mean(confidence[part]) for part in parts])
    hits = np.array([np.mean(np.asarray(right, float)[part]) for part in parts])
    sizes = np.array([len(part) for part in parts])
    return Reliability(mean, hits, float(np.sum(sizes * np.abs(hits - mean)) / len(order)))


# --- groups found without labels -------------------------------------------------------------------------------------------------


def matching(groups: Sequence[str] | np.ndarray, labels: Sequence[str] | np.ndarray) -> dict[str, str]:
    """Group -> class, one-to-one, such that as many images as possible agree (Hungarian); a group that is left over is not in it."""
    from scipy.optimize import linear_sum_assignment  # here, as its import costs more than everything else in this package

    names, group = np.unique(np.asarray(groups, str), return_inverse=True)
    classes, label = np.unique(np.asarray(labels, str), return_inverse=True)
    together = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(together, (group, label), 1)
    return {str(names[i]): str(classes[j]) for i, j in zip(*linear_sum_assignment(together, maximize=True), strict=True)}


def clustering_accuracy(groups: Sequence[str] | np.ndarray, labels: Sequence[str] | np.ndarray) -> float:
    """Clustering accuracy (`cacc`): share of images whose group is matched with their class. Groups beyond the classes are errors."""
    matched = matching(groups, labels)
    return float(np.mean([matched.get(str(g)) == str(c) for g, c in zip(groups, labels, strict=True)]))
