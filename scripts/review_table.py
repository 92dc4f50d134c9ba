"""Does what a person answers help with the images that the person never saw? Five seeds, paired, with a reviewer who gives the true label.

    python scripts/review_table.py --root ../shared/data/grocery_produce50 --target slow_rate:0.3 -- models=photos

Per seed (it chooses the support images): evaluate with slow=person; answer the whole page with the true labels; mode=review with
review.learn=true; evaluate again with what was learned. Both evaluations are compared on the images that the second one still tests: none
of those was reviewed. Runs are kept in paths.home, and the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fgvr
from fgvr import modes
from fgvr.agents.rule_validation import sign_flip_p
from fgvr.evaluation import review_page
from fgvr.evaluation.uncertainty import t_interval
from fgvr.modes import runs


@dataclass(frozen=True, slots=True)
class Row:
    """One seed."""

    tested: int
    reviewed: int
    before: float  # System 1 alone, all test images
    without: float  # of those answered without the person
    all: float  # with the person's answers
    rest: int  # images that both evaluations test
    rest_before: float
    rest_after: float
    fixed: int
    broken: int
    rest_escalated: float  # share of the rest that the second run would show again


def measured(words: Sequence[str]) -> Row:
    first = fgvr.evaluate(fgvr.load_config("mode=evaluate", "slow=person", *words))
    before = _right(first.path)
    reviewed = modes.perform(
        fgvr.load_config("mode=review", f"answers={_answered(first.path)}", "review.learn=true", *_home(words), f"review.run={first.path}")
    )
    if reviewed.learned is None or reviewed.report is None:
        raise SystemExit("nothing was escalated, so nothing could be learned: choose a higher slow rate")
    second = fgvr.evaluate(fgvr.load_config("mode=evaluate", "slow=person", *words, f"knowledge.learned={reviewed.learned}"))
    after = _right(second.path)
    common = sorted(after)
    pairs = np.array([(before[image], after[image]) for image in common])
    figures = reviewed.figures
    return Row(
        tested=first.n,
        reviewed=figures.reviewed,
        before=figures.fast.right or 0.0,
        without=figures.without_person.right or 0.0,
        all=figures.all.right or 0.0,
        rest=len(common),
        rest_before=float(pairs[:, 0].mean()),
        rest_after=float(pairs[:, 1].mean()),
        fixed=int((~pairs[:, 0] & pairs[:, 1]).sum()),
        broken=int((pairs[:, 0] & ~pairs[:, 1]).sum()),
        rest_escalated=second.slow_rate,
    )


def _home(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.startswith("paths.")]


def _right(run: Path) -> dict[str, bool]:
    """By image, whether System 1 is right."""
    rows = map(json.loads, (run / runs.PREDICTIONS).read_text().splitlines())
    return {row["image"]: row["prediction"] == row["label"] for row in rows}


def _answered(run: Path) -> Path:
    """answers.csv of a person who knows the truth."""
    page = review_page.read(run)
    labels = {row["image"]: row["label"] for row in map(json.loads, (run / runs.PREDICTIONS).read_text().splitlines())}
    file = Path(tempfile.mkdtemp()) / "answers.csv"
    with open(file, "w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("run", "image", "class_id", "class_name"))
        rows.writerows((page.run, image, labels[image], page.classes[labels[image]]) for image in page.images)
    return file


def main(words: Sequence[str], seeds: Sequence[int]) -> None:
    rows = []
    print("seed  tested reviewed  fast  without  all  | not reviewed: images  before  after  fixed broken  asked again", flush=True)
    for seed in seeds:
        row = measured([*words, f"dataset.split_seed={seed}"])
        rows.append(row)
        print(
            f"{seed:>4} {row.tested:>7} {row.reviewed:>8}  {row.before:.3f}  {row.without:.3f}  {row.all:.3f} | {row.rest:>20}  "
            f"{row.rest_before:.3f}  {row.rest_after:.3f} {row.fixed:>6} {row.broken:>6}  {row.rest_escalated:>11.3f}",
            flush=True,
        )
    gains = [row.rest_after - row.rest_before for row in rows]
    mean, (low, high) = float(np.mean(gains)), t_interval(np.array(gains))
    better = sum(gain > 0 for gain in gains)
    print(f"gain on images that were not reviewed: {mean:+.4f} [{low:+.4f}, {high:+.4f}] over seeds, better in {better} of {len(gains)}, ")
    print(
        f"exact sign-flip p over seeds {sign_flip_p(gains):.3f}; fixed {sum(r.fixed for r in rows)}, broken {sum(r.broken for r in rows)}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--target", default="slow_rate:0.3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("words", nargs="*", help="of the configuration, such as models=photos")
    given = parser.parse_args()
    fixed = ["dataset=folder", f"dataset.root={given.root}", f"dataset.shots={given.shots}", f"trigger.target={given.target}"]
    main([*fixed, *given.words], given.seeds)
