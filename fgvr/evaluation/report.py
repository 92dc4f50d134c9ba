"""An evaluation's report: the numbers, their file, and a table for the terminal. The page for people is `page.py`.

Nothing here runs a model or decides anything; everything is computed from predictions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import fgvr
from fgvr.errors import StoreError
from fgvr.evaluation import audit, metrics, page, protocols, routers, uncertainty
from fgvr.evaluation.confusion_report import Pictures
from fgvr.evaluation.memory_steps import Course
from fgvr.evaluation.records import Outcomes, outcomes
from fgvr.evaluation.uncertainty import Interval
from fgvr.types import Cost, Prediction, Report
from fgvr.utils.files import atomic_write, read_json
from fgvr.utils.text import printable

if TYPE_CHECKING:
    from fgvr.utils.images import ImageSource

FILE, PAGE = "report.json", "report.html"


@dataclass(frozen=True, slots=True)
class RunReport(Report):
    """A report that still holds what it was made from, so that it can be written."""

    predictions: Sequence[Prediction] = field(default=(), repr=False)  # perhaps read from the disk one by one: walk them, hold none
    seen: Outcomes = field(kw_only=True, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pictures: Pictures = field(default_factory=lambda: Pictures({}, {}), repr=False)
    provenance: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory: Course | None = field(default=None, repr=False)
    peak_host_bytes: int | None = None  # what the process held at most, as the monitor saw it; None where it did not look
    intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict, repr=False)  # by protocol: the two of `uncertainty`
    slow_right: np.ndarray | None = field(default=None, repr=False)  # had all been thought over; where all slow answers are known


def make_report(
    predictions: Sequence[Prediction],
    *,
    classes: Mapping[str, str],
    dataset: str,
    trigger: str,
    notes: Sequence[str] = (),
    model_loads: Mapping[str, int],
    peak_device_bytes: int = 0,
    path: Path,
    skipped: int = 0,
    config: Mapping[str, Any] | None = None,
    pictures: Mapping[str, ImageSource] | None = None,
    known: Mapping[str, Sequence[ImageSource]] | None = None,
    provenance: Mapping[str, str] | None = None,
    memory: Course | None = None,
    peak_host_bytes: int | None = None,
    slow_right: np.ndarray | None = None,
    decode_wait: float | None = None,
    cache_hits: int | None = None,
    measure: Sequence[str] = protocols.DEFAULT,
    sentences: protocols.Sentences | None = None,
) -> RunReport:
    """Score the labelled predictions. `pictures` (image key -> file, PIL image or array) and `known` (class id -> support images) are
    looked at for thumbnails only; `slow_right`: whether each labelled image would be right with System 2, where that is known for all;
    `decode_wait`: seconds the models waited for pictures, `cache_hits`: embeddings and replies that were remembered, each where that was
    measured; `provenance` is shown as it is. The predictions are
    walked, several times, and none is kept.
    """
    seen = outcomes(predictions)
    measured = protocols.measured(seen, measure, sentences)
    intervals = _intervals(measured, seen)
    measured_cost = {"decode_wait": None if decode_wait is None else round(decode_wait, 3), "cache_hits": cache_hits}
    return RunReport(
        n=len(seen),
        top1=metrics.accuracy(seen.right),
        top1_interval=intervals["exact"]["image_bootstrap"],
        macro=metrics.macro(seen.labels, seen.right),
        slow_rate=float(np.mean(seen.escalated)),
        fixed=int(seen.fixed.sum()),
        broken=int(seen.broken.sum()),
        protocols={name: protocols.get(name).scored(value, seen.labels) for name, value in measured.items()},
        asked=total_asked(predictions),
        cost=total_cost(predictions) | {key: value for key, value in measured_cost.items() if value is not None},
        peak_device_bytes=peak_device_bytes,
        model_loads=dict(model_loads),
        notes=(*notes, *audit.remarks(measure, tuple(classes.values()), sentences)),
        classes=dict(classes),
        dataset=dataset,
        trigger=trigger,
        path=Path(path),
        skipped=skipped,
        predictions=predictions,
        seen=seen,
        config=config or {},
        pictures=Pictures({} if pictures is None else pictures, known or {}),
        provenance=dict(provenance or {}),
        intervals=intervals,
        memory=memory,
        peak_host_bytes=peak_host_bytes,
        slow_right=slow_right,
    )


def _intervals(measured: Mapping[str, np.ndarray | float], seen: Outcomes) -> dict[str, dict[str, Interval]]:
    """Both intervals of each score that is a mean over images or over classes; of top-1 always."""
    worth = {"exact": seen.right} | {name: value for name, value in measured.items() if isinstance(value, np.ndarray)}
    macro = {name for name in worth if protocols.get(name).by_class}
    scores = [uncertainty.mean_of_classes(v, seen.labels) if name in macro else uncertainty.mean_of(v) for name, v in worth.items()]
    over_images = uncertainty.image_bootstraps(scores, len(seen))
    over_classes = [
        (uncertainty.class_bootstrap_of_class_means if name in macro else uncertainty.class_bootstrap)(value, seen.labels)
        for name, value in worth.items()
    ]
    pairs = zip(worth, over_images, over_classes, strict=True)
    return {name: {"image_bootstrap": images, "class_bootstrap": classes} for name, images, classes in pairs}


def total_cost(predictions: Sequence[Prediction]) -> dict[str, float]:
    """What was computed for all images together, in the order of the file format."""
    total = sum((p.cost for p in predictions), Cost())
    return {
        "encoder_forwards": total.encoder_forwards,
        "mllm_calls": total.mllm_calls,
        "prompt_tokens": total.prompt_tokens,
        "new_tokens": total.new_tokens,
        "seconds": round(total.seconds, 3),
    }


def total_asked(predictions: Sequence[Prediction]) -> dict[str, float]:
    """What was asked of the models for all images together; empty where a prediction does not tell."""
    total = sum((p.cost for p in predictions), Cost()).asked
    return {} if total is None else {name: getattr(total, name) for name in WORK}


WORK = ("encoder_forwards", "mllm_calls", "prompt_tokens", "new_tokens")


def decode_share(cost: Mapping[str, float]) -> float:
    """Share of a run's time in which the models waited for pictures to be decoded; 0 where none was recorded."""
    waited = cost.get("decode_wait", 0.0)
    return waited / (cost["seconds"] + waited) if waited else 0.0


def to_json(report: RunReport) -> dict[str, Any]:
    """What `report.json` holds: the report's own fields, then what explains them."""
    seen = report.seen
    return {
        "n": report.n,
        "top1": report.top1,
        "top1_interval": list(report.top1_interval),
        "macro": report.macro,
        "slow_rate": report.slow_rate,
        "fixed": report.fixed,
        "broken": report.broken,
        "unchanged": report.unchanged,
        "protocols": dict(report.protocols),
        "protocol_versions": {name: protocols.get(name).version for name in report.protocols},
        "intervals": {name: {kind: list(bounds) for kind, bounds in both.items()} for name, both in report.intervals.items()},
        "fast": {
            "top1": metrics.accuracy(seen.fast_right),
            "recall5": metrics.top_k(seen.fast_place, 5),
            "score_auroc": _finite(metrics.auroc(seen.score, seen.fast_right)) if len(np.unique(seen.score)) > 1 else None,
        },
        "calibration_error": metrics.reliability(seen.confidence, seen.right).error,
        "routers": _routers(report, seen),
        "abstention": abstention(report.predictions),
        "unreadable": unreadable(report.predictions),
        "cost": dict(report.cost),
        "asked": dict(report.asked) or None,
        "computed": dict(report.computed),
        "stage_seconds": stage_seconds(report.memory),
        "peak_device_bytes": report.peak_device_bytes,
        "peak_host_bytes": report.peak_host_bytes,
        "model_loads": dict(report.model_loads),
        "skipped": report.skipped,
        "dataset": report.dataset,
        "trigger": report.trigger,
        "notes": list(report.notes),
        "classes": dict(report.classes),
        "fgvr": fgvr.__version__,
        "provenance": dict(report.provenance),
        "config": dict(report.config),
    }


def stage_seconds(memory: Course | None) -> dict[str, dict[str, float]] | None:
    """By role: seconds of loading it, and of its being used; none of a role that was not needed. None where memory was not recorded."""
    if memory is None:
        return None
    found: dict[str, dict[str, float]] = {}
    for tally in memory.tallies:  # two models of one role, where another was asked for in a session before
        stage = found.setdefault(tally.role, {"loading": 0.0, "in_use": 0.0})
        stage["loading"] = round(stage["loading"] + tally.loading_seconds, 3)
        stage["in_use"] = round(stage["in_use"] + tally.leased_seconds, 3)
    return found


def abstention(predictions: Sequence[Prediction]) -> dict[str, Any] | None:
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


def _routers(report: RunReport, seen: Outcomes) -> dict[str, Any] | None:
    """Accuracy at equal budget; None where not every slow answer is known (`evaluation.record=all` records them)."""
    if report.slow_right is None:
        return None
    return asdict(routers.at_equal_budget(seen.fast_right, report.slow_right, seen.score, seen.escalated))


def write(report: RunReport, folder: Path) -> None:
    """`report.json` and `report.html`, each whole or not at all; the JSON last, so that its presence means both are there."""
    body = to_json(report)
    atomic_write(Path(folder) / PAGE, printable(page.render(report, body, report.predictions, report.seen, report.pictures, report.memory)))
    atomic_write(Path(folder) / FILE, json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def load(folder: Path) -> Report:
    """The report of a finished run."""
    file = Path(folder) / FILE
    if not file.exists():
        raise StoreError(f"no report in {folder}: the evaluation there has not finished; the same command again goes on")
    body = read_json(file)
    try:
        known = {f.name: body[f.name] for f in fields(Report) if f.name not in ("path", "asked")}
        low, high = known["top1_interval"]
        known |= {"top1_interval": (low, high), "notes": tuple(known["notes"]), "path": Path(folder)}
        return Report(**known, asked=body.get("asked") or {})
    except (ValueError, KeyError, TypeError) as exc:
        raise StoreError(f"{file} is not a report of this version: {exc!r}") from exc


def unreadable(predictions: Sequence[Prediction]) -> int:
    """How many of the images that were sent to System 2 it gave no readable answer for."""
    return sum(p.slow.status == "unreadable" for p in predictions if p.decision.escalate and p.slow is not None)


def asked_of(report: Report, name: str) -> str:
    """How much of a kind of work was asked of the models."""
    return f"{report.asked[name]:,.0f}" if name in report.asked else "not recorded"


def terminal(report: Report) -> RenderableType:
    """Notes, then one table, then where the files lie."""
    intervals = report.intervals if isinstance(report, RunReport) else {"exact": {"image_bootstrap": report.top1_interval}}
    table = Table(title=f"{report.dataset}, trigger {report.trigger}", title_justify="left", show_header=False)
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for name, value in report.protocols.items():
        known = protocols.get(name)
        bounds = "  [{:.3f}, {:.3f}]".format(*intervals[name]["image_bootstrap"]) if name in intervals else ""
        table.add_row(f"{known.title} ({known})", f"{value:.3f}{bounds}", style="bold" if name == "exact" else "")
    table.add_row("images", f"{report.n}" + (f" (+ {report.skipped} skipped)" if report.skipped else ""))
    table.add_row("sent to System 2", f"{report.slow_rate:.1%}")
    if (held := abstention(report.predictions) if isinstance(report, RunReport) else None) is not None:
        table.add_row("answers given", f"{held['answered']:.1%} ({held['withheld']} withheld; top-1 counts their best guesses too)")
        table.add_row("answered and wrong, of all images", f"{held['answered_and_wrong']:.1%}")
    if isinstance(report, RunReport) and (lost := unreadable(report.predictions)):
        table.add_row("unreadable answers of System 2", f"{lost:,} (System 1's answer stands)")
    table.add_row("fixed / broken / unchanged by System 2", f"{report.fixed} / {report.broken} / {report.unchanged}")
    for name, value in report.cost.items():
        if name == "decode_wait":
            table.add_row("waiting for pictures to be decoded", f"{decode_share(report.cost):.1%} of the time")
        elif name in WORK:
            table.add_row(name.replace("_", " "), f"{asked_of(report, name)} asked, {value:,.0f} computed now")
        else:
            table.add_row(name.replace("_", " "), f"{value:,.1f}" if name == "seconds" else f"{value:,.0f}")
    table.add_row("models loaded", ", ".join(f"{role} {n}" for role, n in report.model_loads.items()) or "none")
    return Group(*(Text(note, style="yellow") for note in report.notes), table, Text(f"{report.path}/{PAGE}", no_wrap=True, overflow="ignore"))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
