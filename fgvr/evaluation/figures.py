"""An evaluation's figures. Each is computed once from the predictions; the terminal, report.json and the page all read this record."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgvr.evaluation import metrics, routers, scoring_protocols, uncertainty
from fgvr.evaluation.confusion_report import Pictures
from fgvr.evaluation.memory_history import MemoryHistory
from fgvr.evaluation.records import Outcomes, outcomes
from fgvr.evaluation.uncertainty import Interval
from fgvr.types import Asked, Cost, DeviceUse, Prediction, Report
from fgvr.utils.images import ImageSource

NOTHING_LOADED = {"mllm": 0, "encoder": 0, "joint": 0}
WORK = ("encoder_forwards", "mllm_calls", "prompt_tokens", "new_tokens")
"""Kinds of work that are counted both as asked of the models and as computed."""


@dataclass(frozen=True, slots=True)
class Sure:
    """The images that the trigger did not escalate, where nobody has looked at the others."""

    images: int
    top1: float
    interval: Interval  # 95 %, over images


@dataclass(frozen=True, slots=True, eq=False)
class RunFigures:
    """The figures of a run's report besides the fields of `Report`."""

    intervals: Mapping[str, Mapping[str, Interval]]  # by protocol: the two of `uncertainty`
    fast_top1: float
    fast_top5: float
    score_auroc: float | None
    reliability: metrics.Reliability
    routers: routers.EqualBudget | None  # None where not every slow answer is known (`evaluation.record=all` records them)
    abstention: Mapping[str, Any] | None
    unreadable: int  # images that were sent to System 2 and got no readable answer
    stage_seconds: Mapping[str, Mapping[str, float]] | None
    sure: Sure | None  # None where an MLLM was asked, or every image was escalated


@dataclass(frozen=True, slots=True)
class RunReport(Report):
    """A report with what it was made from, so that it can be written."""

    predictions: Sequence[Prediction] = field(default=(), repr=False)  # perhaps read from the disk one by one: walk them, hold none
    seen: Outcomes = field(kw_only=True, repr=False)
    figures: RunFigures = field(kw_only=True, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pictures: Pictures = field(default_factory=lambda: Pictures({}, {}), repr=False)
    provenance: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory: MemoryHistory | None = field(default=None, repr=False)
    review: Mapping[str, Any] | None = None  # what a person had to look at; None where nobody was asked
    devices: tuple[DeviceUse, ...] = ()  # where there are several
    workers: Sequence[Mapping[str, Any]] = ()  # what each has done and loaded; empty where one process did it all
    peak_host_bytes: int | None = None  # what the process held at most, as the monitor saw it; None where it did not look

    @property
    def alone(self) -> bool:
        """Whether nobody was asked besides System 1: no MLLM, and no person."""
        return self.review is None and self.asked.get("mllm_calls") == 0

    @property
    def unsure(self) -> bool:
        return self.alone and self.slow_rate > 0

    @property
    def sure(self) -> Sure | None:
        """The images whose answers stand by themselves; None where none is unsure."""
        return self.figures.sure if self.unsure else None

    @property
    def reviewed(self) -> tuple[routers.Reviewed, ...]:
        """What a person who looks at the least sure could bring; empty where somebody was asked."""
        return routers.reviewed(self.seen.fast_right, self.seen.sureness) if self.alone else ()


def make_report(
    predictions: Sequence[Prediction],
    *,
    classes: Mapping[str, str],
    notes: Sequence[str] = (),
    pictures: Mapping[str, ImageSource] | None = None,
    known: Mapping[str, Sequence[ImageSource]] | None = None,
    memory: MemoryHistory | None = None,
    slow_right: np.ndarray | None = None,
    decode_wait: float | None = None,
    cache_hits: int | None = None,
    measure: Sequence[str] = scoring_protocols.DEFAULT,
    sentences: scoring_protocols.Sentences | None = None,
    **facts: Any,
) -> RunReport:
    """Score the labelled predictions. They are walked several times, and none is kept.

    Args:
        pictures: image key -> file, PIL image or array, for thumbnails; known: class id -> support images, likewise.
        slow_right: whether each labelled image would be right with System 2, where that is known for all.
        decode_wait: seconds that the models waited for images, where that was measured.
        cache_hits: embeddings and replies that were in the store, where that was measured.
        facts: other fields of RunReport, which are known beforehand: dataset, trigger, path, devices, ...
    """
    seen = outcomes(predictions)
    measured = scoring_protocols.measured(seen, measure, sentences)
    total = sum((p.cost for p in predictions), Cost())
    asked = {} if total.asked is None else _work(total.asked)  # empty where a prediction does not tell
    auroc = metrics.auroc(seen.score, seen.fast_right) if len(np.unique(seen.score)) > 1 else math.nan
    figures = RunFigures(
        intervals=_intervals(measured, seen),
        fast_top1=metrics.accuracy(seen.fast_right),
        fast_top5=metrics.top_k(seen.fast_place, 5),
        score_auroc=auroc if math.isfinite(auroc) else None,
        reliability=metrics.reliability(seen.confidence, seen.right),
        routers=None if slow_right is None else routers.at_equal_budget(seen.fast_right, slow_right, seen.score, seen.escalated),
        abstention=_abstention(predictions),
        unreadable=sum(p.slow.status == "unreadable" for p in predictions if p.decision.escalate and p.slow is not None),
        stage_seconds=_stage_seconds(memory),
        sure=None if asked.get("mllm_calls") else _sure(seen.right[~seen.escalated]),
    )
    optional = {"decode_wait": None if decode_wait is None else round(decode_wait, 3), "cache_hits": cache_hits}
    cost = _work(total) | {"seconds": round(total.seconds, 3)} | {key: value for key, value in optional.items() if value is not None}
    return RunReport(
        n=len(seen),
        top1=metrics.accuracy(seen.right),
        top1_interval=figures.intervals["exact"]["image_bootstrap"],
        macro=metrics.macro(seen.labels, seen.right),
        slow_rate=float(np.mean(seen.escalated)),
        fixed=int(seen.fixed.sum()),
        broken=int(seen.broken.sum()),
        protocols={name: scoring_protocols.get(name).scored(value, seen.labels) for name, value in measured.items()},
        asked=asked,
        cost=cost,
        notes=(*notes, *scoring_protocols.remarks(measure, tuple(classes.values()), sentences)),
        classes=dict(classes),
        predictions=predictions,
        seen=seen,
        figures=figures,
        pictures=Pictures({} if pictures is None else pictures, known or {}),
        memory=memory,
        **({"peak_device_bytes": 0, "model_loads": NOTHING_LOADED} | facts),
    )


def _intervals(measured: Mapping[str, np.ndarray | float], seen: Outcomes) -> dict[str, dict[str, Interval]]:
    """Both intervals of each score that is a mean over images or over classes; of top-1 always."""
    worth = {"exact": seen.right} | {name: value for name, value in measured.items() if isinstance(value, np.ndarray)}
    macro = {name for name in worth if scoring_protocols.get(name).by_class}
    scores = [uncertainty.mean_of_classes(v, seen.labels) if name in macro else uncertainty.mean_of(v) for name, v in worth.items()]
    over_images = uncertainty.image_bootstraps(scores, len(seen))
    over_classes = [
        (uncertainty.class_bootstrap_of_class_means if name in macro else uncertainty.class_bootstrap)(value, seen.labels)
        for name, value in worth.items()
    ]
    pairs = zip(worth, over_images, over_classes, strict=True)
    return {name: {"image_bootstrap": images, "class_bootstrap": classes} for name, images, classes in pairs}


def _sure(right: np.ndarray) -> Sure | None:
    return Sure(len(right), metrics.accuracy(right), uncertainty.image_bootstrap(right)) if len(right) else None


def _work(work: Asked | Cost) -> dict[str, float]:
    return {name: getattr(work, name) for name in WORK}


def _stage_seconds(memory: MemoryHistory | None) -> dict[str, dict[str, float]] | None:
    """By role: seconds of loading it, and of its being used; none of a role that was not needed. None where memory was not recorded."""
    if memory is None:
        return None
    found: dict[str, dict[str, float]] = {}
    for model in memory.totals:  # two models of one role, where another was asked for in a session before
        stage = found.setdefault(model.role, {"loading": 0.0, "in_use": 0.0})
        stage["loading"] = round(stage["loading"] + model.loading_seconds, 3)
        stage["in_use"] = round(stage["in_use"] + model.leased_seconds, 3)
    return found


def _abstention(predictions: Sequence[Prediction]) -> dict[str, Any] | None:
    """How many answers were given, and how those fare; None where all are. The scores above it are those of the best guesses."""
    held = np.array([(p.abstention.withheld, bool(p.correct)) for p in predictions if p.label is not None and p.abstention is not None])
    if not len(held):
        return None
    given = held[~held[:, 0]]
    wrong = int((~given[:, 1]).sum())
    return {
        "answered": len(given) / len(held),
        "withheld": len(held) - len(given),
        "answered_and_wrong": wrong / len(held),
        "wrong_of_answered": wrong / len(given) if len(given) else None,
    }
