"""`predictions.csv`: one line per image, for spreadsheets. All that led to an answer stands in `predictions.jsonl`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from fgvr.types import Prediction
from fgvr.utils.files import atomic_write
from fgvr.utils.text import printable

FILE = "predictions.csv"
TOP = 5
COLUMNS = (
    "file",
    "class",
    "confidence",
    "by",
    "unsure",
    *(f"{part}{place}" for place in range(1, TOP + 1) for part in ("top", "probability")),
)


def write(folder: Path, predictions: Iterable[Prediction]) -> Path:
    """The table of these predictions, in their order."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for answer in (prediction.to_dict() for prediction in predictions):
        top = [cell for choice in answer["top"] for cell in (choice["class"], f"{choice['probability']:.4f}")]
        told = (answer["file"], answer["class"], f"{answer['confidence']:.4f}", answer["by"], "yes" if answer["unsure"] else "no")
        table.writerow([printable(cell) for cell in (*told, *top, *[""] * (2 * TOP - len(top)))])
    return atomic_write(folder / FILE, text.getvalue())
