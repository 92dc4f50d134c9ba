"""mode=baselines: what simpler methods reach on the same images, each a run of its own, in one table."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fgvr.evaluation import records, uncertainty
from fgvr.modes.baseline_table import OURS, TITLES, baseline_recognizer, baseline_session, chosen_baselines, unavailable_baselines
from fgvr.modes.evaluating import evaluate, images_of
from fgvr.modes.runs import PREDICTIONS, run_folder
from fgvr.modes.showing import to_json, to_text
from fgvr.scale import working
from fgvr.session import Session
from fgvr.types import Report
from fgvr.utils.files import write_json

log = logging.getLogger(__name__)

TABLE = "baselines.json"


@dataclass(frozen=True, slots=True)
class Baselines:
    """Reports by name, the configuration itself last, and p of each against it (McNemar, exact, two-sided)."""

    reports: Mapping[str, Report]
    p: Mapping[str, float]
    path: Path

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "title": TITLES[name],
                "top1": report.top1,
                "top1_interval": list(report.top1_interval),
                "macro": report.macro,
                "mllm_calls_asked": report.asked["mllm_calls"] / report.n if report.asked else None,
                "mllm_calls_computed": report.cost["mllm_calls"] / report.n,
                "seconds": report.cost["seconds"] / report.n,
                "p": self.p.get(name),
                "path": str(report.path),
            }
            for name, report in self.reports.items()
        ]

    def __repr__(self) -> str:
        shown = [(row["title"], row["top1"], *row["top1_interval"]) for row in self.rows()]
        return "\n".join(f"{title}: {top1:.3f} [{low:.3f}, {high:.3f}]" for title, top1, low, high in shown)


def baselines(session: Session) -> Baselines:
    """Every baseline is evaluated like any run, so that each can be resumed, shown, compared and replayed."""
    names = chosen_baselines(session)
    for name, reason in unavailable_baselines(session).items():
        log.info("left out: %s, since %s", TITLES[name], reason)
    with run_folder(session, mode="baselines") as folder:
        reports = {}
        with working(session, images_of) as at_work:
            for name in names:
                log.info("%s", TITLES[name])
                reports[name] = evaluate(baseline_session(at_work, name), baseline_recognizer(name))
        ours = _right(reports[OURS])
        others = {name: _right(report) for name, report in reports.items() if name != OURS}
        p = {name: uncertainty.mcnemar(*_paired(ours, theirs)) for name, theirs in others.items()}
        found = Baselines(reports, p, folder)
        write_json(folder / TABLE, found.rows())
        return found


@to_text.register
def tables(found: Baselines) -> list[RenderableType]:
    first, last = next(iter(found.reports.values())), found.reports[OURS]
    table = Table(title=f"{last.dataset}, {last.n} images", title_justify="left")
    heads = "method,top-1 accuracy,95 % (images),macro accuracy,MLLM calls/image asked,computed,s/image,p against the last"
    for head in heads.split(","):
        table.add_column(head, justify="left" if head == "method" else "right")
    for row in found.rows():
        low, high = row["top1_interval"]
        p = "" if row["p"] is None else f"{row['p']:.2g}"
        cells = (
            f"{row['top1']:.3f}",
            f"[{low:.3f}, {high:.3f}]",
            f"{row['macro']:.3f}",
            "not recorded" if row["mllm_calls_asked"] is None else f"{row['mllm_calls_asked']:.2f}",
            f"{row['mllm_calls_computed']:.2f}",
            f"{row['seconds']:.3f}",
            p,
        )
        table.add_row(row["title"], *cells)
    notes = dict.fromkeys(note for report in found.reports.values() for note in report.notes)
    lines = (
        "asked: what the method asks of the MLLM; computed, and the seconds: what the store did not remember already",
        f"in detail: mode=compare runs=[{first.path},{last.path}]",
        f"{found.path}/{TABLE}",
    )
    return [*(Text(note, style="yellow") for note in notes), table, *(Text(line, overflow="fold") for line in lines)]


@to_json.register
def _(found: Baselines) -> Any:
    return json.loads((found.path / TABLE).read_text())


def _right(report: Report) -> dict[str, bool]:
    return {p.image: p.category == p.label for p in records.read(report.path / PREDICTIONS) if p.label is not None}


def _paired(a: Mapping[str, bool], b: Mapping[str, bool]) -> tuple[np.ndarray, np.ndarray]:
    both = sorted(a.keys() & b.keys())
    return np.array([a[image] for image in both], bool), np.array([b[image] for image in both], bool)
