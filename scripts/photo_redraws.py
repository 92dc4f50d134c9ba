"""Is the promise about risk kept on real photographs? Support, calibration and test are drawn anew from all images of a folder.

    python scripts/photo_redraws.py FOLDER --shots 9 --calibration 4            # 200 draws, risk:0.1@0.1, both forms
    python scripts/photo_redraws.py FOLDER --shots 4 --calibration 3 --draws 20 models/encoder=efficientnet_lite2

Features are computed once, by the configuration's encoder, and stay in the store of paths.home. Each draw fits System 1 and the trigger as
a recognizer does, and counts as broken when more than epsilon of the test images are answered fast and wrong (joint), or of those that are
answered fast (selective). A kept promise is broken in a tenth of the draws, and in a few more since the test part is finite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fgvr
from fgvr.agents.calibration import Calibrator, Evidence
from fgvr.agents.fusion import Fusion, classifier_of, fuse
from fgvr.agents.leave_one_out import leave_one_out_fast
from fgvr.data.pictures import open_picture
from fgvr.knowledge.build import views
from fgvr.knowledge.prototypes import Prototypes, halves, index_within_class, unit
from fgvr.session import Session
from fgvr.types import FastResult
from fgvr.utils.progress import track

FORMS = ("joint", "selective")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Of N images: as support (views averaged), as queries, class indices, and which belong to the official test part."""

    support: np.ndarray
    queries: np.ndarray
    labels: np.ndarray
    temperature: float
    tested: np.ndarray


@dataclass(frozen=True, slots=True)
class Draw:
    """What one draw of support, calibration and test gave."""

    top1: float
    fast: float  # share of the test images that are answered fast
    risk: float


def features(root: Path, overrides: Sequence[str]) -> tuple[Features, Fusion]:
    cfg = fgvr.load_config("dataset=folder", f"dataset.root={root}", "dataset.shots=1000000", *overrides)
    session = Session(cfg)
    split = session.dataset.split
    samples = sorted((*split.support, *split.test), key=lambda sample: sample.key)
    encoder, batch = session.encoder, cfg.models.encoder.batch_size
    seen = []
    for start in track(range(0, len(samples), batch), "images"):
        shown = [views(open_picture(sample.image), cfg.knowledge.views) for sample in samples[start : start + batch]]
        seen.append(encoder.encode([view for several in shown for view in several]).reshape(len(shown), cfg.knowledge.views, -1))
    vectors = np.concatenate(seen)
    places = {label: i for i, label in enumerate(sorted({str(sample.label) for sample in samples}))}
    labels = np.array([places[str(sample.label)] for sample in samples])
    official = {sample.key for sample in split.test}
    tested = np.array([sample.key in official for sample in samples])
    return Features(unit(vectors.mean(axis=1)), vectors[:, 0], labels, 1 / encoder.logit_scale, tested), session.fusion


def draw(known: Features, fusion: Fusion, *, shots: int, calibration: int, target: str, seed: int) -> dict[str, Draw]:
    """One draw, judged by both forms."""
    support, kept, test = _parts(known.labels, shots, calibration, np.random.default_rng(seed))
    owners = known.labels[support]
    ids = tuple(map(str, range(int(known.labels.max()) + 1)))
    nothing = np.zeros((len(ids), known.support.shape[1]), np.float32)
    base = Prototypes(
        ids, known.support[support], owners, halves(owners.tolist()), nothing, np.stack([nothing] * 2), temperature=known.temperature
    )
    left_out, statistics = leave_one_out_fast(base, [str(i) for i in support], fusion=fusion)
    classifier = classifier_of(base, fusion)

    def answer(indices: np.ndarray) -> tuple[list[FastResult], np.ndarray]:
        similarities = classifier.compare(known.queries[indices])
        names = [str(i) for i in indices]
        results = fuse(names, similarities, ids, statistics.histories(), fusion=fusion, temperature=base.temperature)
        return results, np.array([int(r.top.category) for r in results]) == known.labels[indices]

    evidence = Evidence(left_out, np.array([int(r.top.category) for r in left_out]) == owners)
    calibrated, (results, right) = Evidence(*answer(kept)), answer(test)
    groups = index_within_class(owners.tolist())
    found = {}
    for form in FORMS:
        trigger = Calibrator(target=target, form=form).fit(evidence, groups, calibrated)
        fast = np.array([not decision.escalate for decision in trigger(results)])
        wrong = float((fast & ~right).mean())
        found[form] = Draw(float(right.mean()), float(fast.mean()), wrong if form == "joint" else wrong / max(float(fast.mean()), 1e-9))
    return found


def _parts(labels: np.ndarray, shots: int, calibration: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of support (in the order of the classes), calibration and test; a class with few images has the fewer to test."""
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in range(int(labels.max()) + 1):
        own = random.permutation(np.flatnonzero(labels == label))
        for part, chosen in zip(parts, (own[:shots], own[shots : shots + calibration], own[shots + calibration :]), strict=True):
            part += chosen.tolist()
    return tuple(np.array(part) for part in parts)  # pyright: ignore[reportReturnType]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shots", type=int, default=9)
    parser.add_argument("--calibration", type=int, default=4, help="images of each class that nothing learns from")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--target", default="risk:0.1@0.1")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    known, fusion = features(options.folder, options.overrides)
    epsilon = float(options.target.partition(":")[2].partition("@")[0])
    draws = [
        draw(known, fusion, shots=options.shots, calibration=options.calibration, target=options.target, seed=seed)
        for seed in track(range(options.draws), "draws")
    ]
    print(f"{options.folder.name}, {options.shots} shots, {options.calibration} for calibration, {options.target}, {fusion.classifier}:")
    for form in FORMS:
        rows = [found[form] for found in draws]
        top1, fast = (np.mean([getattr(row, name) for row in rows]) for name in ("top1", "fast"))
        broken = sum(row.risk > epsilon for row in rows)
        print(
            f"  {form:<10} broken in {broken} of {len(rows)}; answered fast {fast:.3f}, top-1 {top1:.3f}, mean risk "
            f"{np.mean([row.risk for row in rows]):.3f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
