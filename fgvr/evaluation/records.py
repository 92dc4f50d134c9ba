"""Predictions as lines of `predictions.jsonl`, and the arrays the metrics work on.

A row holds everything needed to decide and score again without a model. Class *names* are not in it: they stand once, in `report.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from sys import intern
from typing import Any, overload

import numpy as np

from fgvr.errors import DatasetError, StoreError
from fgvr.types import UNKNOWN, Abstention, Asked, Candidate, Cost, Decision, FastResult, History, Prediction, SlowResult

DECIMALS = 6
"""Verdicts are rounded to this many decimals. What they were computed from is written in full, so that a replay computes the same."""


# --- rows ------------------------------------------------------------------------------------------------------------


def to_row(prediction: Prediction) -> dict[str, Any]:
    """One prediction as a JSON object, keys in the order of the file format."""
    fast, decision, slow, cost = prediction.fast, prediction.decision, prediction.slow, prediction.cost
    return {
        "image": prediction.image,
        "sha256": prediction.sha256,
        "label": prediction.label,
        "prediction": prediction.category,
        "confidence": _number(prediction.confidence),
        "by": prediction.by,
        "fast": {
            "candidates": [_candidate_row(c) for c in fast.candidates],
            "confidence": _exact(fast.confidence),
            "margin": _exact(fast.margin),
            "entropy": _exact(fast.entropy),
            "agreement": bool(fast.agreement),
        },
        "history": {"seen": int(fast.history.seen), "correct": int(fast.history.correct), "total": int(fast.history.total)},
        "decision": {
            "escalate": bool(decision.escalate),
            "score": _number(decision.score),
            "threshold": _number(decision.threshold),
            "terms": {name: _number(value) for name, value in decision.terms.items()},
        },
        "slow": None if slow is None else _slow_row(slow),
        "abstention": None if prediction.abstention is None else _abstention_row(prediction.abstention),
        "cost": {
            "mllm_calls": int(cost.mllm_calls),
            "prompt_tokens": int(cost.prompt_tokens),
            "new_tokens": int(cost.new_tokens),
            "encoder_forwards": int(cost.encoder_forwards),
            "seconds": _number(cost.seconds),
            "asked": None if cost.asked is None else {name: int(count) for name, count in asdict(cost.asked).items()},
        },
    }


def from_row(row: Mapping[str, Any], classes: Mapping[str, str] | None = None) -> Prediction:
    """The prediction of a row; without `classes` (id -> name) a class is called by its id."""
    category, fast, decision = str(row["prediction"]), row["fast"], row["decision"]
    return Prediction(
        image=row["image"],
        sha256=row["sha256"],
        label=_label(row["label"]),
        category=category,
        name="unknown" if category == UNKNOWN else (classes or {}).get(category, category),
        confidence=float(row["confidence"]),
        by=row["by"],
        fast=FastResult(
            sha256=row["sha256"],
            candidates=tuple(_candidate(c) for c in fast["candidates"]),
            confidence=float(fast["confidence"]),
            margin=float(fast["margin"]),
            entropy=float(fast["entropy"]),
            agreement=fast["agreement"],
            history=History(**row["history"]),
        ),
        decision=Decision(
            escalate=decision["escalate"],
            score=float(decision["score"]),
            threshold=float(decision["threshold"]),
            terms={name: float(value) for name, value in decision["terms"].items()},
        ),
        slow=None if row["slow"] is None else _slow(row["slow"]),
        cost=_cost(row["cost"]),
        abstention=None if (held := row.get("abstention")) is None else _abstention(held),  # absent in files of 0.1
        names=classes or {},
    )


def as_recorded(prediction: Prediction) -> Prediction:
    """What `from_row` makes of the prediction's row, without writing and reading it: verdicts are rounded, evidence is exact."""
    p, decision, cost, held = prediction, prediction.decision, prediction.cost, prediction.abstention
    return replace(
        p,
        confidence=_rounded(p.confidence),
        decision=Decision(
            decision.escalate,
            _rounded(decision.score),
            _rounded(decision.threshold),
            {name: _rounded(value) for name, value in decision.terms.items()},
        ),
        abstention=None if held is None else replace(held, score=_rounded(held.score), threshold=_rounded(held.threshold)),
        cost=Cost(cost.mllm_calls, cost.prompt_tokens, cost.new_tokens, cost.encoder_forwards, _rounded(cost.seconds), asked=cost.asked),
    )


KEPT = 4096
"""Of how many recorded predictions there is a copy in memory (some 25 MB): most test sets are no larger."""


class Recorded(Sequence[Prediction]):
    """The predictions of rows that lie elsewhere, each made when it is asked for: what has been recorded once need not be held.

    The first `KEPT` stay once they are made: a report walks them five times.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], classes: Mapping[str, str] | None = None, made: Mapping[int, Prediction] | None = None
    ) -> None:
        """Args: made: some of them by their place, `as_recorded`; they need not be read again."""
        self._rows, self._classes = rows, classes
        self._made = dict(made or {})

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | list[Prediction]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(len(self))[index]]
        return self._at(range(len(self))[index])

    def __iter__(self) -> Iterator[Prediction]:
        return (self._at(i) for i in range(len(self)))

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
    """All predictions of a `predictions.jsonl`."""
    predictions = []
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                predictions.append(from_row(json.loads(line), classes))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
                raise StoreError(f"{file}, line {number} is not a prediction: {exc!r}") from exc
    return predictions


def _label(value: object) -> str | None:
    if not isinstance(value, str | None):
        raise TypeError(f"label is {value!r}, not a class id")
    return value


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    return {
        "category": candidate.category,
        "probability": _exact(candidate.probability),
        "image_score": _optional(candidate.image_score),
        "text_score": _optional(candidate.text_score),
        "name_score": _optional(candidate.name_score),
        "joint_score": _optional(candidate.joint_score),
        "image_rank": None if candidate.image_rank is None else int(candidate.image_rank),
        "text_rank": None if candidate.text_rank is None else int(candidate.text_rank),
    }


def _candidate(row: Mapping[str, Any]) -> Candidate:
    scores = ("probability", "image_score", "text_score", "name_score", "joint_score")
    return Candidate(
        **{**row, "category": intern(row["category"]), **{key: None if row[key] is None else float(row[key]) for key in scores}}
    )


def _slow_row(slow: SlowResult) -> dict[str, Any]:
    return {
        "category": slow.category,
        "probabilities": {category: _exact(p) for category, p in slow.probabilities.items()},
        "rationale": slow.rationale,
        "rules": list(slow.rules),
        "status": slow.status,
        "log_likelihoods": {category: _exact(nats) for category, nats in slow.log_likelihoods.items()},
    }


def _slow(row: Mapping[str, Any]) -> SlowResult:
    probabilities = {category: float(p) for category, p in row["probabilities"].items()}
    nats = {category: float(value) for category, value in row.get("log_likelihoods", {}).items()}  # absent in files of 0.1
    return SlowResult(row["category"], probabilities, row["rationale"], tuple(row["rules"]), row["status"], nats)


def _cost(row: Mapping[str, Any]) -> Cost:
    asked = row.get("asked")  # absent in files of 0.1
    return Cost(**{**row, "seconds": float(row["seconds"]), "asked": None if asked is None else Asked(**asked)})


def _abstention_row(held: Abstention) -> dict[str, Any]:
    return {"withheld": bool(held.withheld), "score": _number(held.score), "threshold": _number(held.threshold)}


def _abstention(row: Mapping[str, Any]) -> Abstention:
    return Abstention(row["withheld"], float(row["score"]), float(row["threshold"]))


def _number(value: float) -> float | str:
    """Rounded; JSON has no infinities, so they are written as the strings that `float` reads. Minus zero becomes zero."""
    rounded = _rounded(value)
    return rounded if math.isfinite(rounded) else str(rounded)


def _rounded(value: float) -> float:
    """As a number of a row comes back."""
    return round(float(value), DECIMALS) + 0.0


def _exact(value: float) -> float | str:
    value = float(value) + 0.0
    return value if math.isfinite(value) else str(value)


def _optional(value: float | None) -> float | str | None:
    return None if value is None else _exact(value)


# --- arrays ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What happened to each labelled image, one array entry per image."""

    index: np.ndarray  # int: which of the predictions it is
    labels: np.ndarray  # class ids, str
    answers: np.ndarray  # final class ids, str
    fast_answers: np.ndarray  # System 1's first candidate, str
    escalated: np.ndarray  # bool
    by_slow: np.ndarray  # bool: System 2 gave the final answer
    place: np.ndarray  # int: where the truth stands in the final ranking, from 1; 0 = not in it
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
    """Arrays over the images whose label is known. The predictions are walked once and none is kept."""
    columns = [(i, p.label, *_columns(p, p.label)) for i, p in enumerate(predictions) if p.label is not None]
    if not columns:
        raise DatasetError("nothing to score: none of the images has a label")
    index, labels, answers, fast, escalated, by_slow, place, fast_place, score, fast_confidence, confidence, ranked, texts, names = zip(
        *columns, strict=True
    )
    return Outcomes(
        index=np.array(index),
        labels=np.array(labels),
        answers=np.array(answers),
        fast_answers=np.array(fast),
        escalated=np.array(escalated, bool),
        by_slow=np.array(by_slow, bool),
        place=np.array(place),
        fast_place=np.array(fast_place),
        score=np.array(score, float),
        fast_confidence=np.array(fast_confidence, float),
        confidence=np.array(confidence, float),
        rankings=ranked,
        texts=texts,
        classes={label: label for label in labels} | dict(names[0]),
    )


def _columns(p: Prediction, label: str) -> tuple[Any, ...]:
    """One image's entries. Class ids are shared: there are few, and they stand in every ranking."""
    ranked, shortlist = [intern(c) for c in ranking(p)], _shortlist(p)
    return (
        intern(p.category),
        intern(p.fast.top.category),
        p.decision.escalate,
        p.by != "fast",
        _place(label, ranked),
        _place(label, shortlist),
        p.decision.score,
        p.fast.confidence,
        p.confidence,
        tuple(ranked),
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
