"""What one world of birds shows: the quantities of the embedded default's table, measured through the public names of fgvr."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import fgvr
from fgvr.data import birds
from fgvr.data.pictures import open_picture
from fgvr.evaluation import metrics, records, routers
from fgvr.pipeline import Recognizer
from fgvr.session import Session
from fgvr.types import Picture, Prediction, Sample
from fgvr.utils.batches import chunks

MATCHED = 0.60
EPSILON, DELTA = 0.1, 0.1
DRAWS = 40
"""Draws of support and calibration images per world on which the promise about risk is tried; five worlds make 200."""
CALIBRATED = ("trigger=calibrated", f"trigger.target=slow_rate:{MATCHED:.2f}")
RUNS = {
    "fast": ("trigger=never",),
    "slow": ("trigger=always",),
    "calibrated": CALIBRATED,
    "reason": ("trigger=always", "slow=reason"),
    "alone": ("trigger=always", "slow.candidates=all", "slow.answer_fusion=slow"),
}
OPTIONAL = ("reason", "alone", "promise")
"""Parts that take long and can be left out."""


def measure(seed: int, overrides: Sequence[str], *, slow: bool = True, skip: Collection[str] = ()) -> dict[str, float]:
    """All quantities of one world, or without `slow` those of System 1. One process, so the models are loaded once for all worlds."""
    world = ("dataset=birds", f"dataset.seed={seed}", *overrides)
    wanted = {name: words for name, words in RUNS.items() if (slow or name == "fast") and name not in skip}
    answers = {name: predictions(fgvr.evaluate(fgvr.load_config("mode=evaluate", *world, *words))) for name, words in wanted.items()}
    cfg = fgvr.load_config("mode=build_knowledge_base", *world)
    base = fgvr.build_knowledge_base(cfg)
    truth = birds.make_world(seed, tuple(cfg.dataset.genera), cfg.dataset.difficulty)
    written = {record.name: record.description.text for record in base.classes}
    found = fast_quantities(answers["fast"]) | attributes_right(written, {species.name: species.describe() for species in truth.species})
    found |= slow_quantities(answers) if slow else {}
    test = TestImages.of(Session(cfg).dataset.split.test)
    found["auroc"] = test.auroc(fgvr.build_recognizer(fgvr.load_config(*world, *CALIBRATED), base))
    return found | (promise(test, world) if slow and "promise" not in skip else {})


def predictions(report: fgvr.Report) -> list[Prediction]:
    return records.read(report.path / "predictions.jsonl", report.classes)


def fast_quantities(answers: Sequence[Prediction]) -> dict[str, float]:
    only = records.outcomes(answers)
    return {"fast": metrics.accuracy(only.right), "recall5": metrics.top_k(only.fast_place, 5)}


def slow_quantities(runs: Mapping[str, Sequence[Prediction]]) -> dict[str, float]:
    """What the runs of one world show. Scores come from the calibrated run, slow answers from the one that always thinks."""
    calibrated = runs["calibrated"]
    always = {p.sha256: p for p in runs["slow"]}
    if always.keys() != {p.sha256 for p in calibrated}:
        raise ValueError("the runs of one world did not see the same images")
    seen, thought = records.outcomes(calibrated), records.outcomes([always[p.sha256] for p in calibrated])
    fast, slow, score = seen.fast_right, thought.right, seen.score
    curve = routers.curve(fast, slow, score)
    found = {
        "slow": metrics.accuracy(slow),
        "calibrated": metrics.accuracy(seen.right),
        "calibrated_rate": metrics.accuracy(seen.escalated),
        "gain": metrics.accuracy(seen.right) - metrics.accuracy(records.outcomes(runs["fast"]).right),
        "matched": curve.at(MATCHED),
        "matched_loss": curve.at(MATCHED) - metrics.accuracy(slow),
        "matched45_loss": curve.at(0.45) - metrics.accuracy(slow),
        "recovered": recovered(fast, slow, score, MATCHED),
        "area": routers.gap_share(fast, slow, score),
    }
    return found | {name: metrics.accuracy(records.outcomes(runs[name]).right) for name in ("reason", "alone") if name in runs}


def recovered(fast_right: np.ndarray, slow_right: np.ndarray, score: np.ndarray, rate: float) -> float:
    """Share of (slow - fast) accuracy already there at a slow rate; random recovers `rate`. nan when they are equally good."""
    fast, slow = float(np.mean(fast_right)), float(np.mean(slow_right))
    return (routers.curve(fast_right, slow_right, score).at(rate) - fast) / (slow - fast) if slow != fast else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class TestImages:
    """A world's test images, opened once."""

    batches: tuple[tuple[Picture, ...], ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> TestImages:
        opened = tuple(tuple(open_picture(sample.image) for sample in batch) for batch in chunks(samples, 100))
        return cls(opened, tuple(str(sample.label) for sample in samples))

    def fast_only(self, recognizer: Recognizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(score, answered fast, System 1 right) of each image; System 2 is not asked."""
        fast = [result for batch in self.batches for result in recognizer.fast(batch)]
        decisions = recognizer.decide(fast)
        right = [result.top.category == label for result, label in zip(fast, self.labels, strict=True)]
        return np.array([d.score for d in decisions]), np.array([not d.escalate for d in decisions]), np.array(right)

    def auroc(self, recognizer: Recognizer) -> float:
        score, _, right = self.fast_only(recognizer)
        return metrics.auroc(score, right)


def promise(test: TestImages, world: Sequence[str], draws: int = DRAWS) -> dict[str, float]:
    """Support and calibration images drawn anew each time: how often more than epsilon of the test images are fast and wrong.

    The test images stand for the true risk. The base needs no answers of System 2: they decide nothing that is answered fast.
    """
    words = ("trigger=calibrated", f"trigger.target=risk:{EPSILON}@{DELTA}", "knowledge.leave_one_out=false", "slow.weight=0.5")
    broken, coverage = [], []
    for draw in range(draws):
        recognizer = fgvr.build_recognizer(fgvr.load_config("mode=evaluate", *world, *words, f"dataset.split_seed={draw}"))
        _, fast, right = test.fast_only(recognizer)
        broken.append(float(np.mean(fast & ~right)) > EPSILON)
        coverage.append(float(fast.mean()))
    return {"promise_broken": float(np.mean(broken)), "promise_fast": float(np.mean(coverage))}


def attributes_right(written: Mapping[str, str], truth: Mapping[str, str]) -> dict[str, float]:
    """Share of attributes a description states as they are, over all and by attribute; a missing or doubtful one is wrong."""
    said = {name: stated(written.get(name, "")) for name in truth}
    actual = {name: stated(text) for name, text in truth.items()}
    each = {a: float(np.mean([said[name][a] is not None and said[name][a] == actual[name][a] for name in truth])) for a in birds.ATTRIBUTES}
    return {"attributes": float(np.mean(list(each.values())))} | {f"attribute: {a}": share for a, share in each.items()}


def stated(description: str) -> dict[str, str | None]:
    """Attribute -> the one value the words give it; None when there is none, or more than one."""
    text = description.lower()
    values = {a: {v for v in choices if re.search(rf"\b{birds.phrase(a, v)}\b", text)} for a, choices in birds.ATTRIBUTES.items()}
    return {a: next(iter(found)) if len(found) == 1 else None for a, found in values.items()}
