"""`report.html` of `mode=classify`: each image's way to its answer, by System 1, the trigger and System 2, with all reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from fgvr.evaluation import figures
from fgvr.types import Candidate, Prediction

if TYPE_CHECKING:
    from fgvr.utils.images import ImageSource

SHOWN = 200
"""Images on one page; the rest is in predictions.jsonl."""
CANDIDATES = 8
_BALANCE = "think slowly ◂ ▸ answer fast"
PICTURE = 224
"""Longer side of a picture, pixels."""


def render(predictions: Sequence[Prediction], pictures: Mapping[str, ImageSource], notes: Sequence[str] = ()) -> str:
    """One self-contained page, in the order of the predictions."""
    style = resources.files("fgvr.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    said = "".join(f'<p class="note" role="note">{escape(note)}</p>' for note in notes)
    more = f"<p>{len(predictions) - SHOWN:,} more are in predictions.jsonl.</p>" if len(predictions) > SHOWN else ""
    ways = "".join(way(prediction, pictures.get(prediction.image)) for prediction in predictions[:SHOWN])
    title = f"{len(predictions):,} image{'s' * (len(predictions) != 1)} classified"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{style}</style></head><body><main><h1>{title}</h1>{said}{ways}{more}</main></body></html>\n"
    )


def way(p: Prediction, picture: ImageSource | None) -> str:
    """One image: the picture and its answer, then the steps that led there."""
    url = figures.thumbnail(picture, PICTURE)
    shown = f'<img src="{url}" alt="{escape(p.image)}">' if url else ""
    answer = f"<h2>{escape(p.answer)} <span>{p.confidence:.0%}, {'System 2' if p.by == 'slow' else 'System 1'}</span></h2>"
    steps = "".join(f"<li>{step}</li>" for step in (_looked(p), _decided(p), _thought(p)) if step)
    return f'<section class="way">{shown}<div>{answer}<p class="file">{escape(p.image)}</p><ol>{steps}</ol></div></section>'


def _looked(p: Prediction) -> str:
    heads = ("candidate", "image", "text", "System 1")
    rows = "".join(_row(p, c, c.probability, _cell(c.image_score), _cell(c.text_score)) for c in p.fast.candidates[:CANDIDATES])
    agreed = "both modalities rank the same class first" if p.fast.agreement else "image and text disagree about the first"
    figures_ = f"margin {p.fast.margin:.2f}, entropy {p.fast.entropy:.2f} nats, {agreed}"
    history = p.fast.history
    record = f"; named {history.seen} times on the support images, {history.correct} of them rightly" if history.seen else ""
    return f"<h3>System 1 looks <span>{escape(figures_ + record)}</span></h3>{_table(heads, rows)}"


def _decided(p: Prediction) -> str:
    verdict, sign = ("think slowly", "&lt;") if p.decision.escalate else ("answer fast", "≥")
    title = f"<h3>The trigger decides: {verdict} <span>score {p.decision.score:.3f} {sign} threshold {p.decision.threshold:.3f}</span></h3>"
    largest = max((abs(value) for value in p.decision.terms.values()), default=0.0) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td class="number">{value:+.2f}</td>'
        f'<td class="balance">{_balance(value / largest)}</td></tr>'
        for name, value in p.decision.terms.items()
    )
    return title + (_table(("reason", "weight", _BALANCE), rows) if rows else "")


def _thought(p: Prediction) -> str:
    if p.slow is None:
        return ""
    if p.slow.category is None:
        return "<h3>System 2 thinks <span>its answer could not be read</span></h3>"
    ranked = sorted(p.slow.probabilities.items(), key=lambda item: -item[1])[:CANDIDATES]
    known = {candidate.category: candidate for candidate in p.fast.candidates}
    rows = "".join(_row(p, known.get(category) or Candidate(category, 0.0, None, None), share) for category, share in ranked)
    rules = "".join(f"<li>{escape(rule)}</li>" for rule in p.slow.rules)
    taught = f"<p>Rules recalled:</p><ul>{rules}</ul>" if rules else ""
    rationale = f"<blockquote>{escape(p.slow.rationale)}</blockquote>" if p.slow.rationale else ""
    unused = "" if p.by == "slow" else " <span>recorded, not used</span>"
    return f"<h3>System 2 thinks{unused}</h3>{_table(('candidate', 'System 2'), rows)}{rationale}{taught}"


def _row(p: Prediction, candidate: Candidate, share: float, *cells: str) -> str:
    name = escape(p.names.get(candidate.category, candidate.category))
    chosen = ' class="chosen"' if candidate.category == p.category else ""
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    bar = f'<span class="bar" style="width:{100 * max(0.0, min(1.0, share)):.1f}%"></span>'
    return f'<tr{chosen}><th scope="row">{name}</th>{numbers}<td class="share">{bar}<span>{share:.1%}</span></td></tr>'


def _balance(value: float) -> str:
    """A bar from the middle: to the left for thinking slowly, to the right for answering fast; value in [-1, 1]."""
    side, kind = ("right:50%", "against") if value < 0 else ("left:50%", "for")
    return f'<span class="bar {kind}" style="{side};width:{50 * abs(value):.1f}%"></span>'


def _table(heads: Sequence[str], rows: str) -> str:
    kinds = {"image": "number", "text": "number", "weight": "number", _BALANCE: "middle"}
    head = "".join(f'<th scope="col" class="{kinds.get(name, "")}">{escape(name)}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
