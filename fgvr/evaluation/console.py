"""What a person sees on the terminal of a base and of single predictions."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from fgvr.evaluation import records
from fgvr.evaluation.records import Recorded
from fgvr.knowledge.base import KnowledgeBase
from fgvr.runtime.leased_models import Work
from fgvr.types import Finding, Prediction

_DETAILED = 3  # images shown with all their reasons; beyond that one line each
_LISTED = 50  # beyond that a summary: which classes, how often, and where the rest is


def facts(title: str, rows: Iterable[tuple[str, str]], bold: str = "") -> Table:
    """Quantities and their values. Args: bold: the quantity that is looked for first."""
    table = Table("quantity", Column("value", justify="right"), title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, value, style="bold" if name == bold else "")
    return table


def knowledge_table(base: KnowledgeBase, work: Work) -> RenderableType:
    """A finished base: what is in it, how well System 1 does on it leave-one-out, what this process had to do for it, where it lies."""
    failed = f", to be asked for again: {', '.join(base.failed)}" if base.failed else ""
    accepted, total = sum(rule.status == "accepted" for rule in base.experience), int(base.statistics.confusion.sum())
    done = f"{work.encoder_forwards} images encoded, {work.mllm_calls} MLLM calls"
    rows = [
        ("classes", f"{len(base.classes)}"),
        ("support images", f"{len(base.support)} ({base.origin.shots} of each class)"),
        ("descriptions", f"{base.described}{failed}"),
        ("rules", f"{accepted} accepted of {len(base.experience)} tried"),
        *([("System 1, leave-one-out", f"{base.statistics.correct.sum() / total:.3f} of {total}")] if total else []),
        *([("built in", f"{base.manifest.seconds:.1f} s")] if base.manifest is not None else []),
        ("work done now", done if work.encoder_forwards or work.mllm_calls else "none, all was there"),
        ("key", base.origin.key),
    ]
    table = facts(f"knowledge base: {base.origin.dataset} {base.origin.world}", rows)
    return Group(table, Text(str(base.path), no_wrap=True, overflow="ignore"))  # whole, to be copied


def findings_table(findings: Sequence[Finding]) -> RenderableType:
    """One line each; what is not well comes with its cure."""
    ill = sum(not finding.well for finding in findings)
    whole = [Column(name, overflow="fold") for name in ("found", "cure")]  # a path or an address is of no use with its end cut off
    title = "all is well" if not ill else f"{ill} of {len(findings)} not well"
    table = Table("", "topic", *whole, title=title, title_justify="left")
    for finding in findings:
        style = "" if finding.well else "red"
        table.add_row("ok" if finding.well else "!!", finding.topic, finding.detail, finding.cure, style=style)
    return table


def prediction_tables(predictions: Sequence[Prediction]) -> list[RenderableType]:
    """Few images with every reason, some as one line each, of many a summary by class."""
    if len(predictions) > _LISTED:
        return _summary(predictions)
    if len(predictions) > _DETAILED:
        table = Table("image", "prediction", "confidence", "by", "runner-up")
        for p in predictions:
            runner_up = next((name for name, _ in p.ranked() if name != p.name), "")
            table.add_row(p.image, p.answer, f"{p.confidence:.2f}", p.by, runner_up)
        return [table]
    return [part for prediction in predictions for part in _reasons(prediction)]


def _summary(predictions: Sequence[Prediction]) -> list[RenderableType]:
    """Images and mean confidence per class, most frequent first; of all images as many as are unsure, and where each answer is."""
    confidences: dict[str, list[float]] = {}
    unsure: Counter[str] = Counter()
    for answer in (prediction.to_dict() for prediction in predictions):
        confidences.setdefault(answer["class"], []).append(answer["confidence"])
        unsure[answer["class"]] += answer["unsure"]
    ordered = sorted(confidences, key=lambda name: (-len(confidences[name]), name))
    table = Table("class", *(Column(name, justify="right") for name in ("images", "unsure", "mean confidence")))
    for name in ordered[:_LISTED]:
        found = confidences[name]
        table.add_row(name, f"{len(found):,}", f"{unsure[name]:,}", f"{sum(found) / len(found):.2f}")
    more = f", {len(ordered) - _LISTED} classes more" if len(ordered) > _LISTED else ""
    lines = [f"{len(predictions):,} images, {unsure.total():,} of them unsure, {len(ordered)} classes{more}"]
    if isinstance(predictions, Recorded) and predictions.folder is not None:
        lines.append(f"every image: {predictions.folder / records.TABLE}; with all reasons: {predictions.folder}")
    return [table, *(Text(line, overflow="fold") for line in lines)]


def _reasons(p: Prediction) -> list[RenderableType]:
    table = Table("candidate", "System 1", "image", "text", "System 2", title=f"{p.image}: {p.answer} ({p.confidence:.2f}, {p.by})")
    table.title_justify = "left"
    for candidate in p.fast.candidates[:8]:
        slow = p.slow.probabilities.get(candidate.category) if p.slow else None
        shown = (candidate.probability, candidate.image_score, candidate.text_score, slow)
        table.add_row(_name(p, candidate.category), *("" if value is None else f"{value:.3f}" for value in shown))
    lines: list[RenderableType] = [table, Text(p.reason)]
    if p.slow is not None and p.slow.rationale:
        lines.append(Text(f"System 2: {p.slow.rationale}"))
    return lines


def _name(prediction: Prediction, category: str) -> str:
    return prediction.names.get(category, category)
