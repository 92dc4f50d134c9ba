"""The oracle: what a perfect trigger would have done. Knows both outcomes, so it exists in evaluations only."""

from collections.abc import Mapping
from dataclasses import replace

from fgvr.types import Decision, Prediction


class Oracle:
    """Thinks slowly only where that mends an error: the ceiling for every trigger, at the least cost that reaches it."""

    name = "oracle"

    def redecide(self, prediction: Prediction, names: Mapping[str, str]) -> Prediction:
        """The prediction of `trigger=always` as the oracle would have it; where System 2 mends nothing, its work is not done."""
        fast_right = prediction.fast.top.category == prediction.label
        mends = bool(prediction.correct) and not fast_right
        terms = {"fast_right": float(fast_right), "slow_right": float(bool(prediction.correct))}
        decision = Decision(mends, 0.0 if mends else 1.0, 0.5, terms)
        if mends:
            return replace(prediction, decision=decision)
        top = prediction.fast.top
        return replace(
            prediction,
            category=top.category,
            name=names[top.category],
            confidence=top.probability,
            by="fast",
            decision=decision,
            slow=None,
            cost=prediction.cost.without_thinking,
        )
