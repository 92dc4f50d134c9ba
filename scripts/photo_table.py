"""System 1 on photographs: how often it is right, how far its scores are to be trusted, and what looking at the unsure ones would give.

    python scripts/photo_table.py FOLDER... --encoders efficientnet_lite0 efficientnet_lite1 efficientnet_lite2
    python scripts/photo_table.py FOLDER... --shots 4
    python scripts/photo_table.py FOLDER... --classifiers

One line per folder and encoder, each by `mode=evaluate` with the default settings of models=photos: the tables of docs/photos.md.
`reviewed` is the accuracy if a person who is always right looked at so many of the least sure photographs; in brackets at as many chosen
by chance, and by who knows which are wrong. The same command goes on where it was, and shows finished lines at once.

`--classifiers` shows instead how the classifier was chosen. `chosen on` is the accuracy among support images alone, two thirds of a class's
to learn from and one third to try, mean of ten splits; `test` is the official test part, which played no part in the choice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from photo_redraws import Features, features

import fgvr
from fgvr.agents.fusion import Fusion, classifier_of
from fgvr.evaluation import metrics, records, routers
from fgvr.knowledge.prototypes import Prototypes, halves
from fgvr.modes.evaluating import evaluate
from fgvr.modes.runs import PREDICTIONS
from fgvr.session import Session

SETTINGS = {
    "class means": (Fusion(), False),
    "class means, mirrored views": (Fusion(), True),
    "linear discriminant, shrinkage .8": (Fusion(classifier="linear"), False),
    "linear discriminant, shrinkage .5, mirrored views": (Fusion(classifier="linear", shrinkage=0.5), True),
    "linear discriminant, shrinkage .8, mirrored views": (Fusion(classifier="linear"), True),
    "linear discriminant, shrinkage .95, mirrored views": (Fusion(classifier="linear", shrinkage=0.95), True),
}
HEADS = ("set", "images", "top-1", "left out", "AUROC", "ECE of the confidence, of the score", "unsure")
REVIEWED = (0.1, 0.2, 0.3, 0.5)
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


def classifiers(folder: Path, shots: int | None, words: Sequence[str]) -> list[str]:
    """A line per setting."""
    known, _ = features(folder, words)
    random = np.random.default_rng(0)
    pool, tried = np.flatnonzero(~known.tested), np.flatnonzero(known.tested)
    support, _ = first_of_each(known.labels, random.permutation(pool), shots)
    splits = [first_of_each(known.labels, random.permutation(support), share=2 / 3) for _ in range(SPLITS)]
    lines = []
    for name, (fusion, mirrored) in SETTINGS.items():
        chosen = np.mean([top1(known, learn, keep, fusion, mirrored=mirrored) for learn, keep in splits])
        tested = top1(known, support, tried, fusion, mirrored=mirrored)
        lines.append(f"| {folder.name} | {name} | {chosen:.3f} | {tested:.3f} |")
    return lines


def trusted(folder: Path, encoder: str, shots: int | None, words: Sequence[str]) -> str:
    """A line of the table, of an evaluation by the default settings."""
    given = ("dataset=folder", f"dataset.root={folder}", f"dataset.shots={shots or 'all'}", f"models/encoder={encoder}")
    session = Session(fgvr.load_config("mode=evaluate", *given, *words))
    report = evaluate(session)
    seen = records.outcomes(records.read(report.path / PREDICTIONS))
    results, _ = session.left_out()
    known = session.knowledge.prototypes
    left_out = np.mean([result.top.category == known.ids[owner] for result, owner in zip(results, known.owners, strict=True)])
    errors = [metrics.reliability(values, seen.right).error for values in (seen.confidence, seen.score)]
    reviewed = [f"{r.ours:.3f} ({r.random:.3f}, {r.oracle:.3f})" for r in routers.reviewed(seen.fast_right, seen.score, REVIEWED)]
    low, high = report.top1_interval
    cells = [
        f"{folder.name}, {shots or 'all'} shots, {encoder}",
        f"{report.n}",
        f"{report.top1:.3f} [{low:.3f}, {high:.3f}]",
        f"{left_out:.3f}",
        f"{metrics.auroc(seen.score, seen.fast_right):.3f}",
        f"{errors[0]:.3f}, {errors[1]:.3f}",
        f"{report.slow_rate:.3f}",
        *reviewed,
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--encoders", nargs="+", default=["efficientnet_lite0"], metavar="NAME")
    parser.add_argument("--shots", type=int, help="support images of each class; default: all of the official part")
    parser.add_argument("--classifiers", action="store_true")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="words", help="of the configuration")
    asked = parser.parse_args(arguments)
    heads = ["set", "setting", "chosen on", "test"] if asked.classifiers else [*HEADS, *(f"reviewed {share:.0%}" for share in REVIEWED)]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    for folder in asked.folders:
        for encoder in asked.encoders:
            chosen = [f"models/encoder={encoder}", *asked.words]
            lines = classifiers(folder, asked.shots, chosen) if asked.classifiers else [trusted(folder, encoder, asked.shots, asked.words)]
            print("\n".join(lines), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
