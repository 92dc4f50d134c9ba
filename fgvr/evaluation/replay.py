"""Decide again from recorded evidence: another threshold, trigger, fusion weight or pooling, without asking any model.

A replay gives what a fresh run with those settings would give, or says what is missing: System 1 is fused again from the recorded scores,
System 2's answer is put together again from the recorded log-likelihoods. What the record cannot say is an error, never a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.agents.fusion import Fusion, fuse_recorded
from fgvr.agents.slow import Judgement, Question, Shortlist, answer
from fgvr.agents.trigger import decide
from fgvr.errors import StoreError
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.knowledge.experience import Library
from fgvr.pipeline import redecide
from fgvr.protocols import Trigger
from fgvr.types import Cost, FastResult, History, Prediction, SlowResult

COSTS = "replayed: nothing was computed; asked is what the recorded run asked, and of System 2 for the images sent to it only"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replay:
    """The settings of a replay, made from a base and a configuration as a Recognizer is."""

    ids: Sequence[str]
    histories: Sequence[History]
    temperature: float
    fusion: Fusion
    recorded: Fusion  # with which the record was made
    trigger: Trigger
    oracle: Oracle | None
    shortlist: Shortlist
    library: Library
    independent: bool  # whether System 2 judged each option by itself
    same_shortlists: bool = False  # whether fusion and candidates are the recorded ones, so that System 2 would be shown the same
    answer_fusion: LogLinearFusion
    names: Mapping[str, str]

    def __call__(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Raises StoreError with the number of slow answers that are needed and not recorded."""
        fast = self._fast(predictions)
        decisions = decide(self.trigger, fast)
        slow = [self._slow(p, result) if d.escalate else None for p, result, d in zip(predictions, fast, decisions, strict=True)]
        missing = sum(d.escalate and s is None for d, s in zip(decisions, slow, strict=True))
        if missing:
            needed = sum(d.escalate for d in decisions)
            raise StoreError(
                f"{missing} of the {needed} slow answers this replay needs were not recorded; "
                "run the evaluation with evaluation.record=all, then replay that"
            )
        evidence = [replace(p, fast=result, slow=s) for p, result, s in zip(predictions, fast, slow, strict=True)]
        settled = [redecide(p, lambda results, d=d: [d], self.answer_fusion, self.names) for p, d in zip(evidence, decisions, strict=True)]
        if self.oracle is not None:
            settled = [self.oracle.redecide(p, self.names) for p in settled]
        return [replace(p, slow=p.slow if p.decision.escalate else None, cost=_asked(p)) for p in settled]

    def _fast(self, predictions: Sequence[Prediction]) -> list[FastResult]:
        results = [p.fast for p in predictions]
        if self.fusion == self.recorded:
            return results
        return fuse_recorded(results, self.ids, self.histories, fusion=self.fusion, recorded=self.recorded, temperature=self.temperature)

    def _slow(self, prediction: Prediction, fast: FastResult) -> SlowResult | None:
        """What System 2 would say to this shortlist; None where the record does not tell."""
        slow = prediction.slow
        if slow is None:
            return None
        options = tuple(self.shortlist(fast))
        rules = tuple(rule.rule for rule in self.library.recall([option.category for option in options]))
        if rules != slow.rules:
            return None
        if slow.status == "unreadable":
            return slow if self.same_shortlists else None
        known = slow.log_likelihoods
        if [option.category for option in options] == list(slow.probabilities):
            return replace(slow, log_likelihoods={c: known[c] for c in slow.probabilities if c in known})
        if not self.independent or any(option.description and option.category not in known for option in options):
            return None
        judged = Judgement(np.array([known.get(option.category, np.nan) for option in options]))
        return answer(Question(options, rules), judged)


def _asked(prediction: Prediction) -> Cost:
    """A replay computes nothing."""
    return Cost(asked=(prediction.cost if prediction.decision.escalate else prediction.cost.without_thinking).asked)
