"""Predictions as lines of `predictions.jsonl`, as a table for spreadsheets, and as the arrays that the metrics work on.

A row holds everything that is needed to decide and score again without a model, and the names of the classes it mentions.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from fgvr.errors import DatasetError, ImageError, StoreError
from fgvr.types import UNKNOWN, Prediction
from fgvr.utils.files import atomic_write
from fgvr.utils.lazy import LazySequence
from fgvr.utils.text import misfits, printable

DECIMALS = 6
"""Verdicts are rounded to this many decimals. The evidence for them is written in full, so that a replay computes the same."""
KEPT = 4096
"""Recorded predictions that stay in memory (some 25 MB), because a report walks them five times. Most test sets are no larger."""


# --- rows ------------------------------------------------------------------------------------------------------------


def to_row(prediction: Prediction) -> dict[str, Any]:
    """One prediction as a JSON object, keys in the order of the file format."""
    fast, cost = _plain(prediction.fast, _exact), _plain(prediction.cost, _rounded)
    del fast["sha256"], cost["decode_wait"], cost["cache_hits"]
    history = fast.pop("history")
    return {
        "image": prediction.image,  # path relative to the data set, or the name it was given
        "sha256": prediction.sha256,  # of its content
        "label": prediction.label,  # true class id, where it is known
        "prediction": prediction.category,  # class id of the answer
        "name": prediction.name,  # its name
        "confidence": _plain(prediction.confidence, _rounded),  # of the answer
        "by": prediction.by,  # fast, slow or person
        "unsure": prediction.unsure,  # not to be relied on: withheld, or the trigger doubts it and nobody has looked again
        "fast": fast,  # System 1
        "history": history,  # of the class that System 1 names
        "decision": _plain(prediction.decision, _rounded),  # of the trigger
        "slow": _plain(prediction.slow, _exact),  # System 2; null where it was not asked
        "abstention": _plain(prediction.abstention, _rounded),  # null: every answer is given
        "cost": cost,  # of this image
        "names": {id: prediction.names[id] for id in _mentioned(prediction) if id in prediction.names},  # id -> name
    }


def _mentioned(prediction: Prediction) -> list[str]:
    """Class ids, each once: the truth where it is known, the answer, the shortlist."""
    label = [] if prediction.label is None else [prediction.label]
    return list(dict.fromkeys([*label, prediction.category, *_shortlist(prediction)]))


def _plain(value: Any, number: Callable[[float], float]) -> Any:
    """A record as JSON values. JSON has no infinities, so they are written as the strings that `float` reads."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        found = number(value)
        return found if math.isfinite(found) else str(found)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(inner, number) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner, number) for inner in value]
    return {name: _plain(getattr(value, name), number) for name in value.__slots__}


def _rounded(value: float) -> float:
    """Minus zero becomes zero."""
    return round(value, DECIMALS) + 0.0


def _exact(value: float) -> float:
    return value + 0.0


def from_row(row: Mapping[str, Any], classes: Mapping[str, str] | None = None) -> Prediction:
    """The prediction of a row. `classes`: id -> name; by default the names in the row, and in files of 0.1 the ids."""
    names, category = classes or row.get("names", {}), str(row["prediction"])
    found = _reader().validate_python(
        {
            **row,
            "category": category,
            "name": names.get(category, row.get("name", "unknown" if category == UNKNOWN else category)),
            "fast": {**row["fast"], "sha256": row["sha256"], "history": row["history"]},
            "cost": {"asked": None, **row["cost"]},  # absent in files of 0.1
            "names": {},
        }
    )
    return replace(found, names=names)  # the same ones for all


@cache
def _reader() -> TypeAdapter[Prediction]:
    return TypeAdapter(Prediction)


def as_recorded(prediction: Prediction) -> Prediction:
    """The prediction as a reader of its row sees it: verdicts are rounded, evidence is exact."""
    return replace(from_row(to_row(prediction)), name=prediction.name, names=prediction.names)


class Recorded(LazySequence[Prediction]):
    """The predictions of rows that lie elsewhere. The first `KEPT` stay in memory once they are made; the others are made anew."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        classes: Mapping[str, str] | None = None,
        made: Mapping[int, Prediction] | None = None,
        folder: Path | None = None,
        unreadable: Sequence[ImageError] = (),
    ) -> None:
        """Args: made: some of the predictions by their place, `as_recorded`, which need not be read again. folder, unreadable: a run's."""
        super().__init__(len(rows), self._at)
        self._rows, self._classes, self.folder, self.unreadable = rows, classes, folder, unreadable
        self._made = dict(made or {})

    def _at(self, i: int) -> Prediction:
        made = self._made.get(i)
        if made is None:
            made = from_row(self._rows[i], self._classes)
            if i < KEPT:
                self._made[i] = made
        return made

    def __repr__(self) -> str:
        return f"<{len(self):,} recorded predictions>"


def to_line(prediction: Prediction) -> str:
    """The row as one line of strict JSON, newline included."""
    return json.dumps(to_row(prediction), allow_nan=False) + "\n"


def read(file: Path, classes: Mapping[str, str] | None = None) -> list[Prediction]:
    """All predictions of a `predictions.jsonl`. Raises StoreError with the number of a line that is none."""
    predictions = []
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                predictions.append(from_row(json.loads(line), classes))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
                raise StoreError(f"{file}, line {number} is not a prediction: {misfits(exc)}") from exc
    return predictions


# --- `predictions.csv`: one line per image, for spreadsheets ------------------------------------------------------------

TABLE = "predictions.csv"
TOP = 5
COLUMNS = (
    "file",
    "class",
    "confidence",
    "by",
    "unsure",
    *(f"{part}{place}" for place in range(1, TOP + 1) for part in ("top", "probability")),
)


def write_table(folder: Path, predictions: Iterable[Prediction]) -> Path:
    """The table of these predictions, in their order."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for answer in (prediction.to_dict() for prediction in predictions):
        top = [cell for choice in answer["top"] for cell in (choice["class"], f"{choice['probability']:.4f}")]
        told = (answer["file"], answer["class"], f"{answer['confidence']:.4f}", answer["by"], "yes" if answer["unsure"] else "no")
        table.writerow([printable(cell) for cell in (*told, *top, *[""] * (2 * TOP - len(top)))])
    return atomic_write(folder / TABLE, text.getvalue())


# --- arrays ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The outcome of each labelled image, one array entry per image."""

    index: np.ndarray  # int, into the predictions
    labels: np.ndarray  # class ids, str
    answers: np.ndarray  # final class ids, str
    fast_answers: np.ndarray  # System 1's first candidate, str
    escalated: np.ndarray  # bool
    by_slow: np.ndarray  # bool: System 2 gave the final answer
    place: np.ndarray  # int: rank of the truth in the final ranking, from 1; 0 = not in it
    fast_place: np.ndarray  # the same in System 1's ranking
    score: np.ndarray  # the trigger's score; low = escalate
    fast_confidence: np.ndarray
    confidence: np.ndarray  # of the final answer
    rankings: tuple[tuple[str, ...], ...] = ()  # class ids, best first, as far as they are known
    texts: tuple[tuple[str, str], ...] = ()  # (answered name, true name); "" where there is no answer
    classes: Mapping[str, str] = field(default_factory=dict)  # id -> name of every class there is

    @property
    def right(self) -> np.ndarray:
        return self.answers == self.labels

    @property
    def fast_right(self) -> np.ndarray:
        return self.fast_answers == self.labels

    @property
    def sureness(self) -> np.ndarray:
        """By what images are ordered: the trigger's score, or System 1's confidence where that is the same for all."""
        return self.score if len(np.unique(self.score)) > 1 else self.fast_confidence

    @property
    def fixed(self) -> np.ndarray:
        """System 1 was wrong, System 2 was asked, the final answer is right."""
        return self.escalated & ~self.fast_right & self.right

    @property
    def broken(self) -> np.ndarray:
        """System 1 was right, System 2 was asked, the final answer is wrong."""
        return self.escalated & self.fast_right & ~self.right

    def __len__(self) -> int:
        return len(self.labels)


def outcomes(predictions: Iterable[Prediction]) -> Outcomes:
    """Arrays over the images whose label is known. The predictions are walked once, and none is kept."""
    columns = list(zip(*(_columns(i, p, p.label) for i, p in enumerate(predictions) if p.label is not None), strict=True))
    if not columns:
        raise DatasetError("nothing to score: none of the images has a label")
    *arrays, rankings, texts, names = columns
    classes = {label: label for label in columns[1]} | dict(names[0])
    return Outcomes(*map(np.array, arrays), rankings=rankings, texts=texts, classes=classes)


def _columns(index: int, p: Prediction, label: str) -> tuple[Any, ...]:
    """One image's entries in the order of `Outcomes`. Class ids are shared: there are few, and they stand in every ranking."""
    ranked, shortlist = tuple(map(intern, ranking(p))), _shortlist(p)
    return (
        index,
        label,
        intern(p.category),
        intern(p.fast.top.category),
        bool(p.decision.escalate),
        p.by != "fast",
        _place(label, ranked),
        _place(label, shortlist),
        float(p.decision.score),
        float(p.fast.confidence),
        float(p.confidence),
        ranked,
        (p.name, p.names.get(label, label)),
        p.names,
    )


def ranking(prediction: Prediction) -> list[str]:
    """Class ids, best first: the final answer, then what System 2 weighed when it was asked, then System 1's shortlist."""
    slow = prediction.slow.probabilities if prediction.slow is not None and prediction.by != "fast" else {}
    weighed = sorted(slow, key=lambda category: -slow[category])
    return list(dict.fromkeys([prediction.category, *weighed, *_shortlist(prediction)]))


def _shortlist(prediction: Prediction) -> list[str]:
    return [c.category for c in prediction.fast.candidates]


def _place(category: str, ranked: Sequence[str]) -> int:
    return ranked.index(category) + 1 if category in ranked else 0
