"""System 1 on a folder of photographs with an official test part: which classifier, how sure, and what looking at the unsure ones gives.

    python scripts/photo_table.py FOLDER --shots 9                               # the table of docs/photos.md
    python scripts/photo_table.py FOLDER --shots 4 models/encoder=efficientnet_lite2

`chosen on` is the accuracy among support images alone, two thirds of a class's to learn from and one third to try, mean of ten splits: the
setting was chosen by it. `test` is the official test part. Below: the trigger's score of the chosen setting on the test part. Features are
computed once and stay in the store of paths.home.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from photo_redraws import Features, features

from fgvr.agents.calibration import Calibrator, Evidence
from fgvr.agents.fusion import Fusion, classifier_of, fuse
from fgvr.agents.leave_one_out import leave_one_out_fast
from fgvr.evaluation import metrics
from fgvr.knowledge.prototypes import Prototypes, halves, index_within_class

SETTINGS = {
    "class means": (Fusion(), False),
    "class means, mirrored views": (Fusion(), True),
    "linear discriminant, shrinkage .8": (Fusion(classifier="linear"), False),
    "linear discriminant, shrinkage .5, mirrored views": (Fusion(classifier="linear", shrinkage=0.5), True),
    "linear discriminant, shrinkage .8, mirrored views": (Fusion(classifier="linear"), True),
    "linear discriminant, shrinkage .95, mirrored views": (Fusion(classifier="linear", shrinkage=0.95), True),
}
CHOSEN = "linear discriminant, shrinkage .8, mirrored views"
REVIEWED = (0.0, 0.1, 0.2, 0.3, 0.5)
SPLITS = 10


def base_of(known: Features, support: np.ndarray, *, mirrored: bool) -> Prototypes:
    owners = known.labels[support]
    ids = tuple(map(str, range(int(known.labels.max()) + 1)))
    nothing = np.zeros((len(ids), known.queries.shape[1]), np.float32)
    shots = (known.support if mirrored else known.queries)[support]
    return Prototypes(ids, shots, owners, halves(owners.tolist()), nothing, np.stack([nothing] * 2), temperature=known.temperature)


def top1(known: Features, support: np.ndarray, tried: np.ndarray, fusion: Fusion, *, mirrored: bool) -> float:
    scores = classifier_of(base_of(known, support, mirrored=mirrored), fusion).compare(known.queries[tried]).image
    return float((np.nan_to_num(scores, nan=-np.inf).argmax(axis=1) == known.labels[tried]).mean())


def first_of_each(labels: np.ndarray, order: np.ndarray, most: int | None = None, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The first of each class in this order, and the rest; grouped by class."""
    first, rest = [], []
    for label in range(int(labels.max()) + 1):
        own = order[labels[order] == label]
        count = min(len(own) if most is None else most, max(1, round(share * len(own))))
        first += own[:count].tolist()
        rest += own[count:].tolist()
    return np.array(first), np.array(rest)


def trusted(known: Features, support: np.ndarray, tried: np.ndarray) -> list[str]:
    """The trigger's score against being right, with the chosen setting."""
    fusion, mirrored = SETTINGS[CHOSEN]
    base = base_of(known, support, mirrored=mirrored)
    left_out, statistics = leave_one_out_fast(base, [str(i) for i in support], fusion=fusion)
    right_left_out = np.array([int(r.top.category) for r in left_out]) == base.owners
    trigger = Calibrator(target="slow_rate:0.3").fit(Evidence(left_out, right_left_out), index_within_class(base.owners.tolist()))
    similarities = classifier_of(base, fusion).compare(known.queries[tried])
    names = [str(i) for i in tried]
    results = fuse(names, similarities, base.ids, statistics.histories(), fusion=fusion, temperature=base.temperature)
    right = np.array([int(r.top.category) for r in results]) == known.labels[tried]
    scores = np.array([decision.score for decision in trigger(results)])
    confidence = np.array([r.top.probability for r in results])
    order = np.argsort(scores, kind="stable")
    lines = [
        f"left out {right_left_out.mean():.3f}; AUROC {metrics.auroc(scores, right):.3f}; "
        f"ECE {metrics.reliability(confidence, right).error:.3f}, of the trigger's score {metrics.reliability(scores, right).error:.3f}"
    ]
    for share in REVIEWED:
        looked = round(share * len(order))
        ours = (right[order[looked:]].sum() + looked) / len(order)
        chance = right.mean() + share * (1 - right.mean())
        lines.append(f"reviewed {share:.0%}: {ours:.3f} (random {chance:.3f}, oracle {min(1.0, right.mean() + share):.3f})")
    return lines


def table(known: Features, shots: int | None) -> list[str]:
    random = np.random.default_rng(0)
    pool, tried = np.flatnonzero(~known.tested), np.flatnonzero(known.tested)
    support, _ = first_of_each(known.labels, random.permutation(pool), shots)
    splits = [first_of_each(known.labels, random.permutation(support), share=2 / 3) for _ in range(SPLITS)]
    lines = []
    for name, (fusion, mirrored) in SETTINGS.items():
        chosen = np.mean([top1(known, learn, keep, fusion, mirrored=mirrored) for learn, keep in splits])
        tested = top1(known, support, tried, fusion, mirrored=mirrored)
        lines.append(f"{name:<52} chosen on {chosen:.3f}   test {tested:.3f}")
    return [*lines, *trusted(known, support, tried)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shots", type=int, help="support images of each class; default: all of the official part")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    known, _ = features(options.folder, options.overrides)
    print("\n".join([f"{options.folder.name}, {options.shots or 'all'} shots", *table(known, options.shots)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
