"""Words for people: sizes, near spellings, one spelling of a name, and small tables for notebooks."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgvr.types import MemoryPlan, PlanPart, Prediction, Report

_NUMBER_PREFIX = re.compile(r"^(?:\d+\.(?!\d)|n\d{8}[-_])\s*(?=\S)")  # 107.Common_Raven, n02085620-Chihuahua
_ACCENTS = re.compile(r"([A-Za-z])[\u0300-\u036f]+")
_BLANKS = re.compile(r"[\s_-]+")


def format_bytes(count: float) -> str:
    """`1.50 GiB`, binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def nearest(word: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` choices that look like `word`, best first; [] when none does."""
    known = {choice.casefold(): choice for choice in choices}
    return [known[match] for match in difflib.get_close_matches(word.casefold(), known, n=n, cutoff=0.5)]


def plain_name(name: str) -> str:
    """A folder's or file's spelling as people write it: `107.Common_Raven` -> `Common Raven`. Case and hyphens stay."""
    return " ".join(_NUMBER_PREFIX.sub("", name.strip()).replace("_", " ").split()) or name


def normalise_name(name: str) -> str:
    """The one spelling names are compared in: number prefix, case, accents on Latin letters, `-`, `_` and blanks do not count."""
    text = _ACCENTS.sub(r"\1", unicodedata.normalize("NFKD", _NUMBER_PREFIX.sub("", name.strip())))
    folded = unicodedata.normalize("NFC", text).casefold()
    return _BLANKS.sub(" ", folded).strip() or folded


def prediction_html(prediction: Prediction) -> str:
    """The shortlist with its scores, why it was (not) thought over, and the slow answer."""
    slow, decision = prediction.slow, prediction.decision
    names = prediction.names
    verdict = {True: " &#10003;", False: f" &#10007; (is {escape(names.get(str(prediction.label), str(prediction.label)))})", None: ""}[
        prediction.correct
    ]
    head = f"<b>{escape(prediction.answer)}</b>{verdict} &middot; {prediction.confidence:.2f} &middot; {prediction.by}"
    rows = [
        (
            names.get(c.category, c.category),
            f"{c.probability:.3f}",
            *map(_number, (c.image_score, c.text_score, c.name_score, c.joint_score)),
        )
        + ((_number(slow.probabilities.get(c.category)),) if slow else ())
        for c in prediction.fast.candidates
    ]
    columns = ["class", "P", "image", "text", "name", "joint", *(["slow"] if slow else [])]
    sign = "&lt;" if decision.score < decision.threshold else "&ge;"
    terms = ", ".join(f"{escape(name)} {value:.3f}" for name, value in decision.terms.items())
    asked = "thought slowly" if decision.escalate else "answered fast"
    why = f"{asked}: score {decision.score:.3f} {sign} {decision.threshold:.3f}" + (f" ({terms})" if terms else "")
    parts = [f"<div>{escape(prediction.image)}: {head}</div>", html_table(columns, rows), f"<div>{why}</div>"]
    if slow:
        answer = "unreadable" if slow.category is None else names.get(slow.category, slow.category)
        parts.append(f"<div>slow: {escape(answer)}{': ' + escape(slow.rationale) if slow.rationale else ''}</div>")
        parts.extend(f"<div>rule: {escape(rule)}</div>" for rule in slow.rules)
    return f"<div>{''.join(parts)}</div>"


def report_html(report: Report) -> str:
    """An evaluation's figures; notes come first, because they may say that the figures mean little."""
    low, high = report.top1_interval
    rows = [
        ("top-1", f"{report.top1:.4f} [{low:.4f}, {high:.4f}]"),
        ("macro", f"{report.macro:.4f}"),
        ("images", f"{report.n}" + (f" ({report.skipped} skipped)" if report.skipped else "")),
        ("slow rate", f"{report.slow_rate:.3f}"),
        ("fixed / broken by thinking", f"{report.fixed} / {report.broken}"),
        *((name, f"{value:.4f}") for name, value in report.protocols.items()),
        *((f"{name} asked", f"{value:g}") for name, value in report.asked.items()),
        *((f"{name} computed" if name in report.asked else name, f"{value:g}") for name, value in report.cost.items()),
        ("peak device memory", format_bytes(report.peak_device_bytes)),
        ("model loads", ", ".join(f"{role} {count}" for role, count in report.model_loads.items()) or "none"),
        ("files", str(report.path)),
    ]
    notes = "".join(f"<div><i>{escape(note)}</i></div>" for note in report.notes)
    title = f"<b>{escape(report.dataset)}, {escape(report.trigger)}</b>"
    return f"<div>{notes}{title}{html_table(('', ''), rows)}</div>"


def plan_rows(plan: MemoryPlan) -> list[tuple[str, int, str]]:
    """Name (parts of a part indented), bytes and note of every line, the sum last, and below it what is not part of the sum."""
    rows = [row for part in plan.parts for row in _part_rows(part, "")]
    rows.append(("needed", plan.needed, f"of {format_bytes(plan.budget)}: {plan.verdict}"))
    return rows + [row for part in plan.optional for row in _part_rows(part, "")]


def plan_text(plan: MemoryPlan) -> str:
    rows = plan_rows(plan)
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {format_bytes(size):>12}  {note}".rstrip() for name, size, note in rows]
    return "\n".join([*lines, *(f"- {line}" for line in plan.advice)])


def plan_html(plan: MemoryPlan) -> str:
    """The same as a table, with the facts per token and image, main memory, and what could be changed."""
    shown = [(name.replace("  ", "\u2003"), format_bytes(size), note) for name, size, note in plan_rows(plan)]
    host = [(f"main memory: {part.name}", format_bytes(part.bytes), part.note) for part in plan.host]
    facts = "".join(f"<div>{escape(fact)}</div>" for fact in plan.facts)
    advice = "".join(f"<li>{escape(line)}</li>" for line in plan.advice)
    return f"<div>{html_table(('part', 'bytes', ''), [*shown, *host])}{facts}{f'<ul>{advice}</ul>' if advice else ''}</div>"


def _part_rows(part: PlanPart, indent: str) -> list[tuple[str, int, str]]:
    rows = [(indent + part.name, part.bytes, part.note)]
    return rows + [row for inner in part.parts for row in _part_rows(inner, indent + "  ")]


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table; every cell is escaped."""
    head = "".join(f"<th>{escape(c)}</th>" for c in columns) if any(columns) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
