"""A person as System 2: the answers of a review replace System 1's guesses in recorded predictions. No model is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fgvr.types import UNKNOWN, Prediction, SlowResult


def apply_answers(predictions: Sequence[Prediction], answers: Mapping[str, str], names: Mapping[str, str]) -> list[Prediction]:
    """The predictions with a person's answers in place of System 1's guesses. Predictions without an answer do not change.

    Args: answers: by image, a class id, or `UNKNOWN` for "none of these". names: of the classes, by id.
    """
    return [_answered(p, answers[p.image], names) if p.image in answers else p for p in predictions]


def _answered(prediction: Prediction, category: str, names: Mapping[str, str]) -> Prediction:
    if category == UNKNOWN:
        slow = SlowResult(None, {}, status="unknown")
        return replace(prediction, category=UNKNOWN, name="unknown", confidence=0.0, by="person", slow=slow, abstention=None)
    slow = SlowResult(category, {category: 1.0})
    return replace(prediction, category=category, name=names[category], confidence=1.0, by="person", slow=slow, abstention=None)


def waiting(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The escalated predictions that nobody has answered yet, the most doubtful first."""
    return sorted((p for p in predictions if p.decision.escalate and p.by == "fast"), key=lambda p: (p.decision.score, p.confidence))
