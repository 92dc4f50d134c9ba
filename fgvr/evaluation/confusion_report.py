"""Which classes are taken for which, pair by pair: what is known of both, the images that went wrong, and what each system said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from fgvr.evaluation import html, metrics
from fgvr.evaluation.records import Outcomes
from fgvr.types import Prediction

if TYPE_CHECKING:
    from fgvr.utils.images import ImageSource

PAIRS = 40
"""Pairs that can be opened; the rest is in predictions.jsonl."""
SHOWN = 4
"""Confused images shown of a pair, and known images of each of its classes."""
SIDE = 88
"""Longer side of a picture, pixels: forty pairs of twelve stay under two megabytes."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where pictures are to be had; they are read when a page is made."""

    tests: Mapping[str, ImageSource]  # by image key
    known: Mapping[str, Sequence[ImageSource]]  # support images by class id: what the prototypes were made of


def explore(predictions: Sequence[Prediction], seen: Outcomes, classes: Mapping[str, str], pictures: Pictures) -> str:
    """The most frequent ordered pairs of truth and answer, each to be opened. `seen`: the outcomes of the predictions."""
    pairs = metrics.confusions(seen.labels, seen.answers)
    if not pairs:
        return "<p>No image was taken for another class.</p>"
    wrong: dict[tuple[str, str], list[int]] = {}
    for i in np.flatnonzero(~seen.right).tolist():
        wrong.setdefault((str(seen.labels[i]), str(seen.answers[i])), []).append(i)
    known: dict[str, str] = {}  # a class stands in several pairs; its pictures are made once

    def of(category: str) -> str:
        if category not in known:
            known[category] = _known(category, classes, pictures)
        return known[category]

    items = []
    for pair in pairs[:PAIRS]:
        where = wrong[pair.truth, pair.answer]
        shown = [predictions[int(seen.index[i])] for i in where[:SHOWN]]
        asked = int(seen.by_slow[where].sum())
        items.append(_pair(pair, shown, asked, classes, pictures, of(pair.truth) + of(pair.answer)))
    rest = f"<p>{len(pairs) - PAIRS:,} rarer pairs are in predictions.jsonl.</p>" if len(pairs) > PAIRS else ""
    return f'<div class="pairs" data-filter="pairs">{"".join(items)}</div>{rest}'


def _pair(
    pair: metrics.Confusion, images: Sequence[Prediction], asked: int, classes: Mapping[str, str], pictures: Pictures, known: str
) -> str:
    """`images`: those to show; `asked`: how many of all were answered by System 2."""
    truth, answer = (escape(classes.get(category, category)) for category in (pair.truth, pair.answer))
    by = f"{asked} of them answered by System 2" if asked else "all answered by System 1"
    cards = "".join(_card(p, classes, pictures.tests.get(p.image)) for p in images)
    more = f"<p>{pair.count - SHOWN:,} more.</p>" if pair.count > SHOWN else ""
    return (
        f'<details data-name="{truth} {answer}"><summary><b>{truth}</b> taken for <b>{answer}</b> '
        f"<span>{pair.count:,} of {pair.of:,} images ({pair.count / pair.of:.0%}), {by}</span></summary>"
        f'<div class="known">{known}</div><ul class="cards">{cards}</ul>{more}</details>'
    )


def _known(category: str, classes: Mapping[str, str], pictures: Pictures) -> str:
    name = classes.get(category, category)
    urls = [html.thumbnail(source, SIDE) for source in list(pictures.known.get(category, ()))[:SHOWN]]
    shown = "".join(f'<img src="{url}" alt="" loading="lazy">' for url in urls if url)
    return f"<figure><figcaption>known of {escape(name)}</figcaption><div>{shown or 'no picture'}</div></figure>"


def _card(p: Prediction, classes: Mapping[str, str], picture: ImageSource | None) -> str:
    def name(category: str) -> str:
        return escape(classes.get(category, category))

    ranked = sorted((c for c in p.fast.candidates if c.image_score is not None), key=lambda c: -(c.image_score or 0.0))
    nearest = "".join(f"<li>{name(c.category)} <span>{c.image_score:.3f}</span></li>" for c in ranked[:3])
    near = f"<h4>Nearest prototypes</h4><ol>{nearest}</ol>" if nearest else ""
    top = p.fast.top
    looked = f"<h4>System 1</h4><p>{name(top.category)}, {top.probability:.0%}</p>"
    thought = ""
    if p.slow is not None:
        choice = p.slow.category
        answer = "could not be read" if choice is None else name(choice)
        share = "" if choice is None or choice not in p.slow.probabilities else f", {p.slow.probabilities[choice]:.0%}"
        rules = "".join(f"<li>{escape(rule)}</li>" for rule in p.slow.rules)
        said = f"<p>{escape(p.slow.rationale)}</p>" if p.slow.rationale else ""
        thought = f"<h4>System 2</h4><p>{answer}{share}</p>{said}" + (f"<h4>Rules it was shown</h4><ul>{rules}</ul>" if rules else "")
    return f'<li>{html.image(html.thumbnail(picture, SIDE), p.image)}<div class="said">{looked}{thought}{near}</div></li>'
