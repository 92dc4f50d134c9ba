"""An evaluation's report: its file, its page, and a table for the terminal. Each figure is read from the record of `figures.py`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Group, RenderableType
from rich.text import Text

import fgvr
from fgvr.errors import StoreError
from fgvr.evaluation import page, scoring_protocols
from fgvr.evaluation.console import facts
from fgvr.evaluation.figures import WORK, RunReport, make_report
from fgvr.types import Report
from fgvr.utils.files import atomic_write, read_json
from fgvr.utils.text import misfits, printable

__all__ = ["FILE", "PAGE", "RunReport", "load", "make_report", "terminal", "to_json", "write"]

FILE, PAGE = "report.json", "report.html"


def to_json(report: RunReport) -> dict[str, Any]:
    """What `report.json` holds: the report's own fields, then what explains them."""
    figures = report.figures
    own = {f.name: getattr(report, f.name) for f in fields(Report) if f.name != "path"}
    plain = {name: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v for name, v in own.items()}
    more: dict[str, Any] = {} if report.review is None else {"review": dict(report.review)}
    if report.devices:
        more["devices"] = [asdict(one) for one in report.devices]
    if report.workers:
        more["workers"] = list(report.workers)
    return (
        plain
        | more
        | {
            "unchanged": report.unchanged,  # asked in vain
            "protocol_versions": {name: scoring_protocols.get(name).version for name in report.protocols},  # protocol -> version
            "intervals": {name: {kind: list(bounds) for kind, bounds in both.items()} for name, both in figures.intervals.items()},  # 95 %
            "fast": {"top1": figures.fast_top1, "recall5": figures.fast_top5, "score_auroc": figures.score_auroc},
            "calibration_error": figures.reliability.error,  # expected calibration error
            "routers": None if figures.routers is None else asdict(figures.routers),  # accuracy at equal budget
            "reviewed": [asdict(one) for one in report.reviewed] or None,  # where nobody was asked: accuracy if a person looked, at most
            "sure": None if report.sure is None else asdict(report.sure),  # where nobody was asked: the images that are not unsure
            "abstention": figures.abstention,  # shares answered and withheld
            "unreadable": figures.unreadable,  # replies of System 2 that name no candidate
            "asked": dict(report.asked) or None,
            "computed": dict(report.computed),  # of what was asked
            "stage_seconds": figures.stage_seconds,  # stage -> seconds
            "peak_host_bytes": report.peak_host_bytes,  # highest use of main memory
            "fgvr": fgvr.__version__,  # version
            "provenance": dict(report.provenance),  # machine, libraries, models, commit, time
            "config": dict(report.config),  # the whole configuration
        }
    )


def write(report: RunReport, folder: Path) -> None:
    """`report.json` and `report.html`, each whole or not at all; the JSON last, so that its presence means both are there."""
    body = to_json(report)
    atomic_write(Path(folder) / PAGE, printable(page.render(report)))
    atomic_write(Path(folder) / FILE, json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def load(folder: Path) -> Report:
    """The report of a finished run."""
    file = Path(folder) / FILE
    if not file.exists():
        raise StoreError(f"no report in {folder}: the evaluation there has not finished; the same command again goes on")
    body = read_json(file)
    try:
        return TypeAdapter(Report).validate_python({**body, "asked": body.get("asked") or {}, "path": folder})
    except (ValueError, TypeError, AttributeError) as exc:
        raise StoreError(f"{file} is not a report of this version: {misfits(exc)}") from exc


def terminal(report: Report) -> RenderableType:
    """Notes, then one table, then where the files lie."""
    figures = report.figures if isinstance(report, RunReport) else None
    intervals = figures.intervals if figures else {"exact": {"image_bootstrap": report.top1_interval}}
    rows: list[tuple[str, str]] = []
    for name, value in report.protocols.items():
        if name == "top5" and len(report.classes) < 6:  # always right
            continue
        known = scoring_protocols.get(name)
        bounds = "  [{:.3f}, {:.3f}]".format(*intervals[name]["image_bootstrap"]) if name in intervals else ""
        rows.append((f"{known.title} ({known})", f"{value:.3f}{bounds}"))
    rows.append(("images", f"{report.n}" + (f" (+ {report.skipped} skipped)" if report.skipped else "")))
    rows.append(("unsure, and nobody has looked again" if report.unsure else "escalated to System 2", f"{report.slow_rate:.1%}"))
    if isinstance(report, RunReport) and (sure := report.sure):
        low, high = sure.interval
        rows.append((f"accuracy where it is sure ({sure.images:,} images)", f"{sure.top1:.3f}  [{low:.3f}, {high:.3f}]"))
        at_most = sure.top1 * sure.images / report.n + report.slow_rate
        rows.append(("accuracy if a person looked at the unsure, at most", f"{at_most:.3f}"))
    if figures and (held := figures.abstention):
        rows.append(("answers given", f"{held['answered']:.1%} ({held['withheld']} withheld; accuracies count their best guesses too)"))
        rows.append(("answered and wrong, of all images", f"{held['answered_and_wrong']:.1%}"))
    if figures and figures.unreadable:
        rows.append(("unreadable answers of System 2", f"{figures.unreadable:,} (System 1's answer stands)"))
    if not report.unsure:
        rows.append(("fixed / broken / unchanged by System 2", f"{report.fixed} / {report.broken} / {report.unchanged}"))
    for name, value in report.cost.items():
        if name == "decode_wait":
            share = value / (report.cost["seconds"] + value) if value else 0.0
            rows.append(("waiting for pictures to be decoded", f"{share:.1%} of the time"))
        elif name in WORK and (value or report.asked.get(name) != 0):  # no line for a model that took no part
            asked = f"{report.asked[name]:,.0f}" if name in report.asked else "not recorded"
            rows.append((name.replace("_", " "), f"{asked} asked, {value:,.0f} computed now"))
        elif name not in WORK:
            rows.append((name.replace("_", " "), f"{value:,.1f}" if name == "seconds" else f"{value:,.0f}"))
    rows.append(("models loaded", ", ".join(f"{role} {n}" for role, n in report.model_loads.items()) or "none"))
    rows += [("device", str(one)) for one in (report.devices if isinstance(report, RunReport) else ())]
    exact = scoring_protocols.get("exact")
    table = facts(f"{report.dataset}, trigger {report.trigger}", rows, bold=f"{exact.title} ({exact})")
    page = Text(f"{report.path}/{PAGE}", no_wrap=True, overflow="ignore")  # whole, to be copied
    return Group(*(Text(note, style="yellow") for note in report.notes), table, page)
