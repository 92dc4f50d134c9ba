"""Which classes are taken for which, pair by pair: what is known of both, the images that went wrong, and what each system said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fgvr.evaluation import html, metrics
from fgvr.evaluation.records import Outcomes
from fgvr.types import Prediction
from fgvr.utils.images import ImageSource

PAIRS = 40
"""Pairs that can be opened; the rest is in predictions.jsonl."""
SHOWN = 4
"""Confused images shown of a pair, and known images of each of its classes."""
SIDE = 88
"""Longer side of a picture, pixels: forty pairs of twelve stay under two megabytes."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where pictures are to be had; they are read when a page is made."""

    tests: Mapping[str, ImageSource]  # by image key
    known: Mapping[str, Sequence[ImageSource]]  # support images by class id: what the prototypes were made of


@dataclass(frozen=True, slots=True)
class Pair:
    """How often `truth` was taken for `answer`."""

    truth: str
    answer: str
    count: int
    of: int  # images of the true class
    by_system2: int  # answers that are System 2's
    shown: Sequence[Prediction]


@dataclass(frozen=True, slots=True)
class Confusions:
    """The most frequent ordered pairs; `known`: thumbnails of support images by class id, each made once."""

    pairs: Sequence[Pair]
    rarer: int  # pairs that are left out
    known: Mapping[str, Sequence[str]]
    side: int = SIDE


def explore(predictions: Sequence[Prediction], seen: Outcomes, pictures: Pictures) -> Confusions:
    """What templates/confusions.html shows. `seen`: the outcomes of the predictions."""
    found = metrics.confusions(seen.labels, seen.answers)
    wrong: dict[tuple[str, str], list[int]] = {}
    for i in np.flatnonzero(~seen.right).tolist():
        wrong.setdefault((str(seen.labels[i]), str(seen.answers[i])), []).append(i)
    pairs = []
    for pair in found[:PAIRS]:
        where = wrong[pair.truth, pair.answer]
        shown = [predictions[int(seen.index[i])] for i in where[:SHOWN]]
        pairs.append(Pair(pair.truth, pair.answer, pair.count, pair.of, int(seen.by_slow[where].sum()), shown))
    known = {
        category: [url for source in list(pictures.known.get(category, ()))[:SHOWN] if (url := html.thumbnail(source, SIDE))]
        for category in dict.fromkeys(id_ for pair in pairs for id_ in (pair.truth, pair.answer))
    }
    return Confusions(pairs, max(0, len(found) - PAIRS), known)
