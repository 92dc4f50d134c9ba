"""`report.html` of `mode=classify`: how each image got its answer, by System 1, the trigger and System 2, with all reasons."""

from collections.abc import Mapping, Sequence

from fgvr.evaluation import html
from fgvr.types import Prediction
from fgvr.utils.images import ImageSource

SHOWN = 200
"""Images on one page; the rest is in predictions.jsonl."""
CANDIDATES = 8


def render(predictions: Sequence[Prediction], pictures: Mapping[str, ImageSource], notes: Sequence[str] = ()) -> str:
    """One self-contained page, in the order of the predictions."""
    return html.render(
        "classify.html",
        title=f"{len(predictions):,} image{'s' * (len(predictions) != 1)} classified",
        notes=notes,
        predictions=predictions[:SHOWN],
        more=max(0, len(predictions) - SHOWN),
        pictures=pictures,
        candidates=CANDIDATES,
    )
