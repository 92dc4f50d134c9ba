"""`report.html` of an evaluation: the words and rows that templates/evaluate.html lays out. The page is whole without its script."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

import fgvr
from fgvr.evaluation import charts, confusion_report, html, metrics, routers, scoring_protocols
from fgvr.evaluation.figures import RunReport
from fgvr.evaluation.memory_history import MemoryHistory
from fgvr.evaluation.records import Outcomes
from fgvr.utils.text import format_bytes

FLIPS = 12
"""Pictures shown of what System 2 fixed, and again of what it broke."""
Table = dict[str, Any]
"""Arguments of the macro `table` in templates/parts.html."""


def render(report: RunReport) -> str:
    seen, memory = report.seen, report.memory
    return html.render(
        "evaluate.html",
        title=f"{report.dataset}, {report.trigger}: top-1 accuracy {report.top1:.1%}",
        report=report,
        predictions=report.predictions,
        classes=report.classes,
        pictures=report.pictures.tests,
        tiles=_tiles(report),
        charts=[
            _if_reviewed(seen) if report.alone else _trade_off(seen),
            _selective(seen),
            _reliable(report.figures.reliability),
            _by_class(seen),
        ],
        scores=_scores(report),
        numbers=_numbers(report),
        budget=_reviewed(report.reviewed) if report.alone else _budget(report.figures.routers),
        changed={
            title: [int(seen.index[i]) for i in _varied(seen.labels, np.flatnonzero(which))]
            for title, which in (("Fixed", seen.fixed), ("Broken", seen.broken))
        },
        flips=FLIPS,
        confusions=confusion_report.explore(report.predictions, seen, report.pictures),
        per_class=_per_class(report),
        cost=_cost(report),
        memory=None if memory is None else _memory(memory),
        memory_chart=memory and memory.chart(),
        provenance=_table("What this was made with", ("What", "Which"), list(report.provenance.items()), numeric=()),
        config=json.dumps(dict(report.config), indent=2, ensure_ascii=False, default=str),
        version=fgvr.__version__,
        scored_with=", ".join(str(scoring_protocols.get(name)) for name in report.protocols),
    )


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] | None = None) -> Table:
    """Every column but the first is a number unless `numeric` says otherwise."""
    return {"caption": caption, "heads": heads, "rows": rows, "numeric": range(1, len(heads)) if numeric is None else numeric}


def _tiles(report: RunReport) -> list[tuple[str, str, str]]:
    """Name, value and explanation of what stands first."""
    held, sure = report.figures.abstention, report.sure
    told = "of {:,} images; 95% interval {:.1%} to {:.1%}".format(sure.images, *sure.interval) if sure else ""
    asked = [
        ("Fixed by System 2", f"{report.fixed:,}", "fast was wrong, final is right"),
        ("Broken by System 2", f"{report.broken:,}", "fast was right, final is wrong"),
        ("Unchanged by System 2", f"{report.unchanged:,}", "asked, and as right or wrong as before"),
    ]
    return [
        ("System 1 alone", f"{report.figures.fast_top1:.1%}", "top-1 accuracy without System 2"),
        ("Unsure" if report.unsure else "Escalated to System 2", f"{report.slow_rate:.1%}", f"of {report.n:,} images"),
        *([("Right where it is sure", f"{sure.top1:.1%}", told)] if sure else []),
        *([("Answers given", f"{held['answered']:.1%}", f"{held['answered_and_wrong']:.1%} of all answered and wrong")] if held else []),
        *([] if report.unsure else asked),  # nobody was asked
    ]


def _if_reviewed(seen: Outcomes) -> charts.Chart:
    """What looking again could bring where nobody has looked: a curve that no System 2 can exceed."""
    ours, floor, ceiling = routers.review_curves(seen.fast_right, seen.sureness)
    name = "least certain first" if seen.sureness is seen.fast_confidence else "lowest score of the trigger first"
    lines = [
        charts.Line("oracle, the wrong ones first", ceiling.rate, ceiling.accuracy, "ceiling"),
        charts.Line(name, ours.rate, ours.accuracy, "ours"),
        charts.Line("random", floor.rate, floor.accuracy, "floor"),
    ]
    rate = float(seen.escalated.mean())
    points = [charts.Point("System 1 alone: this run", 0.0, float(seen.fast_right.mean()), "floor")]
    if rate:
        points.append(charts.Point("all that is unsure reviewed", rate, float((seen.fast_right | seen.escalated).mean()), "ours"))
    title = "Accuracy if a person looked again (upper bound: the person is always right)"
    return charts.chart(title, "share of images reviewed", "top-1 accuracy", lines, points)


def _trade_off(seen: Outcomes) -> charts.Chart:
    """Accuracy against the escalated share: the whole curve when System 2 answered every image, else as far as recorded."""
    score = seen.sureness
    slow_right = np.where(seen.escalated, seen.right, seen.fast_right)
    rate, fast, final = float(seen.escalated.mean()), float(seen.fast_right.mean()), float(seen.right.mean())
    ours = routers.curve(seen.fast_right, slow_right, score)
    points = [charts.Point("System 1 alone", 0.0, fast, "floor"), charts.Point("this run", rate, final, "ours")]
    if seen.escalated.all():
        name = "least certain first" if score is seen.fast_confidence else "by the trigger's score"
        ceiling, floor = routers.oracle(seen.fast_right, slow_right), routers.chance(seen.fast_right, slow_right)
        lines = [
            charts.Line("oracle, knows both outcomes", ceiling.rate, ceiling.accuracy, "ceiling"),
            charts.Line(name, ours.rate, ours.accuracy, "ours"),
            charts.Line("random", floor.rate, floor.accuracy, "floor"),
        ]
    else:
        known = ours.rate <= rate + 1e-9
        lines = [charts.Line("by the trigger's score, as far as recorded", ours.rate[known], ours.accuracy[known], "ours")]
    return charts.chart("Accuracy against the escalated share", "share of images escalated to System 2", "top-1 accuracy", lines, points)


def _selective(seen: Outcomes) -> charts.Chart:
    """Risk against coverage of the final answers."""
    coverage, risk = metrics.risk_coverage(seen.confidence, seen.right)
    lines = [charts.Line("answering the most confident first", coverage, risk, "ours")]
    points = [charts.Point("answering all", 1.0, float(risk[-1]), "floor")]
    return charts.chart("Risk against coverage", "share of images answered", "wrong among the answered", lines, points)


def _reliable(found: metrics.Reliability) -> charts.Chart:
    """Confidence of the final answers against how often they are right."""
    ends = np.array([0.0, 1.0])
    lines = [
        charts.Line("confidence that can be taken at its word", ends, ends, "ceiling"),
        charts.Line("this run, ten bins of equally many images", found.confidence, found.accuracy, "ours"),
    ]
    return charts.chart("Reliability", "confidence of the final answer", "share right", lines)


def _by_class(seen: Outcomes) -> charts.Chart:
    """How unlike the classes are: their accuracies, lowest first, before and after System 2."""
    lines = []
    changed = not np.array_equal(seen.right, seen.fast_right)
    for name, right, style in (("final", seen.right, "ours"), ("System 1 alone", seen.fast_right, "floor"))[: 1 + changed]:
        shares = np.sort([score.accuracy for score in metrics.per_class(seen.labels, right)])
        lines.append(charts.Line(name, np.arange(1, len(shares) + 1) / len(shares), shares, style))
    return charts.chart("Accuracy by class", "share of the classes, hardest first", "accuracy of the class", lines)


def _numbers(report: RunReport) -> Table:
    figures = report.figures
    rows = [
        *([("System 1, top-5 accuracy", f"{figures.fast_top5:.1%}")] if len(report.classes) > 5 else []),
        ("Trigger score tells right from wrong (AUROC)", "–" if figures.score_auroc is None else f"{figures.score_auroc:.3f}"),
        ("Expected calibration error (mean gap between confidence and accuracy)", f"{figures.reliability.error:.3f}"),
        *([] if report.alone else [("Unreadable answers of System 2", f"{figures.unreadable:,}")]),
        ("Images skipped", f"{report.skipped:,}"),
        ("Peak device memory", _mib(report.peak_device_bytes)),
        ("Peak main memory of the process", _mib(report.peak_host_bytes)),
        *(("Device", str(one)) for one in report.devices),
        ("Models loaded in this process so far", ", ".join(f"{role} {n}" for role, n in report.model_loads.items()) or "none"),
    ]
    return _table("All other figures of this run", ("Quantity", "Value"), rows)


def _mib(nbytes: int | None) -> str:
    return f"{nbytes / 2**20:,.0f} MiB" if nbytes else "not measured"


def _scores(report: RunReport) -> Table:
    """Each protocol with both its intervals, where it is a mean that can have them."""

    def bounds(name: str, kind: str) -> str:
        return "{:.1%} to {:.1%}".format(*report.figures.intervals[name][kind]) if name in report.figures.intervals else "–"

    rows = [
        (f"{known.title} ({known})", f"{value:.1%}", bounds(name, "image_bootstrap"), bounds(name, "class_bootstrap"))
        for name, value in report.protocols.items()
        if name != "top5" or len(report.classes) > 5
        for known in [scoring_protocols.get(name)]
    ]
    heads = ("Score", "Value", "95%, these classes (image bootstrap)", "95%, new classes of this kind (class bootstrap)")
    return _table("Scores and how far they may be trusted", heads, rows)


def _varied(labels: np.ndarray, chosen: np.ndarray) -> list[int]:
    """The first of each class, then the second of each."""
    met: Counter[str] = Counter()
    turns = []
    for label in labels[chosen].tolist():
        turns.append(met[label])
        met[label] += 1
    return [i for _, i in sorted(zip(turns, chosen.tolist(), strict=True), key=lambda pair: pair[0])]


def _per_class(report: RunReport) -> Table:
    seen = report.seen
    fast = {score.category: score for score in metrics.per_class(seen.labels, seen.fast_right)}
    final = sorted(metrics.per_class(seen.labels, seen.right), key=lambda score: (score.accuracy, score.category))
    rows = [
        (report.classes.get(s.category, s.category), f"{s.n:,}", f"{fast[s.category].accuracy:.0%}", f"{s.accuracy:.0%}") for s in final
    ]
    return _table("Classes", ("Class", "Images", "System 1", "Final"), rows) | {"live": True}


def _budget(equal: routers.EqualBudget | None) -> Table | None:
    """Routers side by side, where every slow answer is known."""
    if equal is None:
        return None
    rows = [
        (name, f"{rate:.1%}", f"{accuracy:.1%}")
        for name, rate, accuracy in (
            ("never", 0.0, equal.never),
            ("random", equal.slow_rate, equal.random),
            ("this run", equal.slow_rate, equal.ours),
            ("oracle, knows both outcomes", equal.slow_rate, equal.oracle),
            ("always", 1.0, equal.always),
        )
    ]
    caption = "Who escalates, at an equal share of escalated images"
    return _table(caption, ("Router", "Escalated to System 2", "Top-1 accuracy"), rows)


def _reviewed(shares: Sequence[routers.Reviewed]) -> Table:
    rows = [(f"{one.share:.0%}", *(f"{value:.1%}" for value in (one.random, one.ours, one.oracle))) for one in shares]
    caption = "Top-1 accuracy if a person who is always right looked at some of the images: an upper bound"
    return _table(caption, ("Reviewed", "Random", "The least sure", "Oracle, the wrong ones"), rows)


def _cost(report: RunReport) -> Table:
    """Work of this run by stage, as asked and as computed. Seconds of a model: while somebody used it."""
    used = {role: (f"{s['loading']:.1f} s", f"{s['in_use']:.1f} s") for role, s in (report.figures.stage_seconds or {}).items()}
    cost, asked = report.cost, {name: f"{value:,.0f}" for name, value in report.asked.items()}

    def work(*names: str) -> tuple[str, str]:
        """As asked and as computed."""
        return " / ".join(asked.get(name, "–") for name in names), " / ".join(f"{cost[name]:,.0f}" for name in names)

    slow = f"{int(report.seen.escalated.sum()):,}"
    rows = [
        ("System 1", f"{report.n:,}", *work("encoder_forwards"), "", "", *used.get("encoder", ("–", "–"))),
        ("System 2", slow, *work("mllm_calls"), *work("prompt_tokens", "new_tokens"), *used.get("mllm", ("–", "–"))),
    ]
    rows = rows[: 1 if report.alone else 2]
    if "joint" in used:
        rows.append(("joint encoder", "", "", "", "", "", *used["joint"]))
    calls, tokens = "Forwards or calls", "Prompt / new tokens"
    heads = ("Stage", "Images", f"{calls} asked", "Computed now", f"{tokens} asked", "Computed now", "Loading", "Model in use")
    waited = cost.get("decode_wait", 0.0)
    idle = f", besides {waited:,.1f} s waiting for pictures to be decoded" if waited else ""
    hits = f" ({cost['cache_hits']:,.0f} embeddings and replies)" if "cache_hits" in cost else ""
    spent = f"{cost['seconds']:,.1f} s in all, {cost['seconds'] / report.n:.3f} s per image{idle}"
    return _table(f"{spent}; what the store remembered{hits} was not computed again", heads, rows)


def _memory(history: MemoryHistory) -> Table:
    """Empty where no model was needed."""
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
        for t in history.totals
    ]
    heads = ("Model", "Weights", "Loads", "Loading", "Evictions", "Leases", "In use")
    return _table(str(history), heads, rows) if rows else {}
