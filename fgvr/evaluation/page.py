"""`report.html`: one self-contained page. No network; light and dark, desktop and phone; whole without its few lines of script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.evaluation import confusion_report, figures, html, memory_picture, metrics, protocols, routers
from fgvr.evaluation.confusion_report import Pictures
from fgvr.evaluation.memory_steps import Course
from fgvr.evaluation.records import Outcomes
from fgvr.types import Prediction, Report
from fgvr.utils.text import format_bytes

if TYPE_CHECKING:
    from fgvr.utils.images import ImageSource

FLIPS = 12
"""Pictures shown of what System 2 fixed, and again of what it broke."""


def render(
    report: Report,
    body: Mapping[str, Any],
    predictions: Sequence[Prediction],
    seen: Outcomes,
    pictures: Pictures,
    memory: Course | None = None,
) -> str:
    """The page for a report, its JSON body, the predictions it was made from with their outcomes, and what the models held meanwhile."""
    style, script = (
        resources.files("fgvr.evaluation").joinpath("templates", name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    sections = (
        _notes(report),
        _headline(report, body),
        _figures(seen),
        _numbers(report, body),
        _budget(body),
        _changed(report, seen, predictions, pictures.tests),
        html.section("Most confused", confusion_report.explore(predictions, seen, report.classes, pictures)),
        _classes(report, seen),
        _cost(report, seen, body["stage_seconds"]),
        _memory(memory) if memory is not None else "",
        _provenance(body),
        _config(body),
    )
    title = escape(f"{report.dataset}, {report.trigger}: top-1 {report.top1:.1%}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{style}</style></head><body><main>{''.join(sections)}</main>"
        f"<footer>fgvr {escape(str(body['fgvr']))} · scored with {escape(_ids(report))}</footer><script>{script}</script></body></html>\n"
    )


# --- sections --------------------------------------------------------------------------------------------------------


def _notes(report: Report) -> str:
    return "".join(f'<p class="note" role="note">{escape(note)}</p>' for note in report.notes)


def _headline(report: Report, body: Mapping[str, Any]) -> str:
    low, high = report.top1_interval
    held = body["abstention"]
    tiles = (
        ("System 1 alone", f"{body['fast']['top1']:.1%}", "top-1 without System 2"),
        ("Sent to System 2", f"{report.slow_rate:.1%}", f"of {report.n:,} images"),
        *([("Answers given", f"{held['answered']:.1%}", f"{held['answered_and_wrong']:.1%} of all answered and wrong")] if held else []),
        ("Fixed by System 2", f"{report.fixed:,}", "fast was wrong, final is right"),
        ("Broken by System 2", f"{report.broken:,}", "fast was right, final is wrong"),
        ("Unchanged by System 2", f"{body['unchanged']:,}", "asked, and as right or wrong as before"),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{why}</small></dd></div>" for name, value, why in tiles)
    return (
        f"<header><h1>{escape(report.dataset)} <span>trigger {escape(report.trigger)}</span></h1>"
        f'<p class="headline"><strong>{report.top1:.1%}</strong> <span>top-1, exact class id<br>'
        f"95% interval {low:.1%} to {high:.1%} over images of these classes</span></p></header>"
        f'<dl class="tiles">{cells}</dl>'
    )


def _figures(seen: Outcomes) -> str:
    return f'<section class="figures">{_trade_off(seen)}{_selective(seen)}{_reliable(seen)}{_by_class(seen)}</section>'


def _trade_off(seen: Outcomes) -> str:
    """Accuracy against slow rate: the whole curve when every image was thought over, else as far as slow answers were recorded."""
    score = seen.score if len(np.unique(seen.score)) > 1 else seen.fast_confidence
    slow_right = np.where(seen.escalated, seen.right, seen.fast_right)
    rate, fast, final = float(seen.escalated.mean()), float(seen.fast_right.mean()), float(seen.right.mean())
    ours = routers.curve(seen.fast_right, slow_right, score)
    points = [figures.Point("System 1 alone", 0.0, fast, "floor"), figures.Point("this run", rate, final, "ours")]
    if seen.escalated.all():
        name = "least certain first" if score is seen.fast_confidence else "by the trigger's score"
        ceiling, floor = routers.oracle(seen.fast_right, slow_right), routers.chance(seen.fast_right, slow_right)
        lines = [
            figures.Line("oracle, knows both outcomes", ceiling.rate, ceiling.accuracy, "ceiling"),
            figures.Line(name, ours.rate, ours.accuracy, "ours"),
            figures.Line("random", floor.rate, floor.accuracy, "floor"),
        ]
    else:
        known = ours.rate <= rate + 1e-9
        lines = [figures.Line("by the trigger's score, as far as recorded", ours.rate[known], ours.accuracy[known], "ours")]
    return figures.chart("Accuracy against slow rate", "share of images sent to System 2", "top-1", lines, points)


def _selective(seen: Outcomes) -> str:
    """Risk against coverage of the final answers."""
    coverage, risk = metrics.risk_coverage(seen.confidence, seen.right)
    lines = [figures.Line("answering the most confident first", coverage, risk, "ours")]
    points = [figures.Point("answering all", 1.0, float(risk[-1]), "floor")]
    return figures.chart("Risk against coverage", "share of images answered", "wrong among the answered", lines, points)


def _reliable(seen: Outcomes) -> str:
    """Confidence of the final answers against how often they are right."""
    found = metrics.reliability(seen.confidence, seen.right)
    ends = np.array([0.0, 1.0])
    lines = [
        figures.Line("confidence that can be taken at its word", ends, ends, "ceiling"),
        figures.Line("this run, ten bins of equally many images", found.confidence, found.accuracy, "ours"),
    ]
    return figures.chart("Reliability", "confidence of the final answer", "share right", lines)


def _by_class(seen: Outcomes) -> str:
    """How unlike the classes are: their accuracies, lowest first, before and after System 2."""
    lines = []
    for name, right, style in (("final", seen.right, "ours"), ("System 1 alone", seen.fast_right, "floor")):
        shares = np.sort([score.accuracy for score in metrics.per_class(seen.labels, right)])
        lines.append(figures.Line(name, np.arange(1, len(shares) + 1) / len(shares), shares, style))
    return figures.chart("Accuracy by class", "share of the classes, hardest first", "top-1 of the class", lines)


def _numbers(report: Report, body: Mapping[str, Any]) -> str:
    fast = body["fast"]
    rows = [
        ("System 1, truth among its first five", f"{fast['recall5']:.1%}"),
        ("Trigger score tells right from wrong (AUROC)", "–" if fast["score_auroc"] is None else f"{fast['score_auroc']:.3f}"),
        ("Confidence misses accuracy by, on average (calibration error)", f"{body['calibration_error']:.3f}"),
        ("Unreadable answers of System 2", f"{body['unreadable']:,}"),
        ("Images skipped", f"{report.skipped:,}"),
        ("Peak device memory", f"{report.peak_device_bytes / 2**20:,.0f} MiB" if report.peak_device_bytes else "not measured"),
        ("Peak main memory of the process", f"{body['peak_host_bytes'] / 2**20:,.0f} MiB" if body["peak_host_bytes"] else "not measured"),
        ("Models loaded in this process so far", ", ".join(f"{role} {n}" for role, n in report.model_loads.items()) or "none"),
    ]
    figures = html.table("All other figures of this run", ("Quantity", "Value"), rows, numeric=(1,))
    return html.section("Numbers", _scores(report, body) + figures)


def _scores(report: Report, body: Mapping[str, Any]) -> str:
    """Each protocol with both its intervals, where it is a mean that can have them."""

    def bounds(name: str, kind: str) -> str:
        return "{:.1%} to {:.1%}".format(*body["intervals"][name][kind]) if name in body["intervals"] else "–"

    rows = [
        (f"{known.title} ({known})", f"{value:.1%}", bounds(name, "image_bootstrap"), bounds(name, "class_bootstrap"))
        for name, value in report.protocols.items()
        for known in [protocols.get(name)]
    ]
    heads = ("Score", "Value", "95%, these classes (image bootstrap)", "95%, new classes of this kind (class bootstrap)")
    return html.table("Scores and how far they may be trusted", heads, rows, numeric=(1, 2, 3))


def _changed(report: Report, seen: Outcomes, predictions: Sequence[Prediction], pictures: Mapping[str, ImageSource]) -> str:
    parts = []
    for title, which in (("Fixed", seen.fixed), ("Broken", seen.broken)):
        chosen = _varied(seen.labels, np.flatnonzero(which))
        cards = "".join(_card(predictions[int(seen.index[i])], report.classes, pictures) for i in chosen[:FLIPS])
        more = f", {FLIPS} shown" if len(chosen) > FLIPS else ""
        shown = f'<ul class="cards">{cards}</ul>' if chosen else "<p>None.</p>"
        parts.append(f"<h3>{title} <span>{len(chosen):,}{more}</span></h3>{shown}")
    return html.section("What System 2 changed", "".join(parts))


def _varied(labels: np.ndarray, chosen: np.ndarray) -> list[int]:
    """The first of each class, then the second of each."""
    met: Counter[str] = Counter()
    turns = []
    for label in labels[chosen].tolist():
        turns.append(met[label])
        met[label] += 1
    return [i for _, i in sorted(zip(turns, chosen.tolist(), strict=True), key=lambda pair: pair[0])]


def _card(p: Prediction, classes: Mapping[str, str], pictures: Mapping[str, ImageSource]) -> str:
    url = html.thumbnail(pictures.get(p.image))
    reason = f"<details><summary>Reasons</summary>{escape(p.slow.rationale)}</details>" if p.slow is not None and p.slow.rationale else ""
    rows = (("truth", p.label or "", ""), ("fast", p.fast.top.category, "mark"), ("final", p.category, "mark"))
    said = "".join(
        f'<div class="{kind and ("right" if id_ == p.label else "wrong")}"><dt>{role}</dt><dd>{escape(classes.get(id_, id_))}</dd></div>'
        for role, id_, kind in rows
    )
    return f"<li>{html.image(url)}<dl>{said}</dl><p>{escape(p.image)}</p>{reason}</li>"


def _classes(report: Report, seen: Outcomes) -> str:
    fast = {score.category: score for score in metrics.per_class(seen.labels, seen.fast_right)}
    final = sorted(metrics.per_class(seen.labels, seen.right), key=lambda score: (score.accuracy, score.category))
    rows = [(_name(s.category, report), f"{s.n:,}", f"{fast[s.category].accuracy:.0%}", f"{s.accuracy:.0%}") for s in final]
    table = html.table("Classes", ("Class", "Images", "System 1", "Final"), rows, numeric=(1, 2, 3), live=True)
    return html.section("Classes", table, count=len(rows), folded=True)


def _budget(body: Mapping[str, Any]) -> str:
    """Routers side by side, where every slow answer is known."""
    equal = body["routers"]
    if equal is None:
        return ""
    names = {"never": "never", "random": "random", "ours": "this run", "oracle": "oracle, knows both outcomes", "always": "always"}
    rate = {"never": 0.0, "always": 1.0}
    rows = [(names[key], f"{rate.get(key, equal['slow_rate']):.1%}", f"{equal[key]:.1%}") for key in names]
    caption = "Who thinks slowly, at an equal share of slow answers"
    share = equal["gap_share"]
    told = "" if share is None else f"<p>Over all shares, this run's router lies {share:.0%} of the way from random to the oracle.</p>"
    return html.section("Accuracy at equal budget", html.table(caption, ("Router", "Asked System 2", "Top-1"), rows, numeric=(1, 2)) + told)


def _cost(report: Report, seen: Outcomes, stages: Mapping[str, Mapping[str, float]] | None) -> str:
    """Work of this run by stage, as asked and as computed. Seconds of a model: while somebody used it."""
    used = {role: (f"{s['loading']:.1f} s", f"{s['in_use']:.1f} s") for role, s in (stages or {}).items()}
    cost, slow = report.cost, int(seen.escalated.sum())
    told = {name: f"{value:,.0f}" for name, value in report.asked.items()}
    tokens = f"{told.get('prompt_tokens', '–')} / {told.get('new_tokens', '–')}"
    computed = f"{cost['prompt_tokens']:,.0f} / {cost['new_tokens']:,.0f}"
    rows = [
        (
            "System 1 looks",
            f"{report.n:,}",
            told.get("encoder_forwards", "–"),
            f"{cost['encoder_forwards']:,.0f}",
            "",
            "",
            *used.get("encoder", ("–", "–")),
        ),
        (
            "System 2 thinks",
            f"{slow:,}",
            told.get("mllm_calls", "–"),
            f"{cost['mllm_calls']:,.0f}",
            tokens,
            computed,
            *used.get("mllm", ("–", "–")),
        ),
    ]
    if "joint" in used:
        rows.append(("joint encoder", "", "", "", "", "", *used["joint"]))
    calls, tokened = "Forwards or calls", "Prompt / new tokens"
    heads = ("Stage", "Images", f"{calls} asked", "Computed now", f"{tokened} asked", "Computed now", "Loading", "Model in use")
    waited = cost.get("decode_wait", 0.0)
    idle = f", besides {waited:,.1f} s waiting for pictures to be decoded" if waited else ""
    hits = f" ({cost['cache_hits']:,.0f} embeddings and replies)" if "cache_hits" in cost else ""
    spent = f"{cost['seconds']:,.1f} s in all, {cost['seconds'] / report.n:.3f} s per image{idle}"
    caption = f"{spent}; what the store remembered{hits} was not computed again"
    return html.section("Cost by stage", html.table(caption, heads, rows, numeric=range(1, 8)))


def _memory(course: Course) -> str:
    if not course.tallies:
        return html.section("Memory timeline", "<p>No model was needed: every answer was remembered.</p>")
    rows = [
        (
            f"{t.role} ({t.key})",
            format_bytes(t.bytes),
            f"{t.loads:,}",
            f"{t.loading_seconds:.2f} s",
            f"{t.evictions:,}",
            f"{t.leases:,}",
            f"{t.leased_seconds:.1f} s",
        )
        for t in course.tallies
    ]
    heads = ("Model", "Weights", "Loads", "Loading", "Evictions", "Leases", "In use")
    table = html.table(memory_picture.summary(course), heads, rows, numeric=range(1, 7))
    return html.section("Memory timeline", f'<div class="wide">{memory_picture.draw(course)}</div>{table}')


def _provenance(body: Mapping[str, Any]) -> str:
    rows = [(name, str(value)) for name, value in body["provenance"].items()]
    table = html.table("What this was made with", ("What", "Which"), rows)
    return html.section("Provenance", table, folded=True) if rows else ""


def _config(body: Mapping[str, Any]) -> str:
    text = json.dumps(body["config"], indent=2, ensure_ascii=False, default=str)
    return html.section("Configuration", f"<pre>{escape(text)}</pre>", folded=True)


def _name(category: str, report: Report) -> str:
    return report.classes.get(category, category)


def _ids(report: Report) -> str:
    return ", ".join(str(protocols.get(name)) for name in report.protocols)
