"""Validation of rules: System 2 answers support images with and without each rule; a rule is accepted on evidence only.

Accepted: the exact sign-flip p of the change in log p(true), corrected over all proposed rules, is within the level; the rule fixes at
least as many answers as it breaks; it was validated on enough images. The accepted set must then also do no harm as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fgvr.agents.reflect import Proposal
from fgvr.agents.slow import Decoder, Question, posterior
from fgvr.knowledge.experience import Library, speaks_of
from fgvr.types import Experience, Picture
from fgvr.utils.significance import benjamini_hochberg, sign_flip_p


@dataclass(frozen=True, slots=True)
class Example:
    """A support image that rules are validated on: the question to System 2, and the true class (never shown)."""

    index: int
    fold: int
    question: Question
    truth: str  # among the options
    sha256: str = ""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(option.category for option in self.question.options)


@dataclass(frozen=True, slots=True, eq=False)
class RuleEffect:
    """System 2's answers with rules, compared with those without."""

    gains: np.ndarray  # (n,) change in log p(true), nats
    fixed: int
    broken: int

    @property
    def gain(self) -> float | None:
        """Mean over the examples, nats; None where there was none."""
        return float(self.gains.mean()) if len(self.gains) else None

    @property
    def harmless(self) -> bool:
        return self.fixed >= self.broken and (self.gain is None or self.gain >= 0)


@dataclass(frozen=True, slots=True)
class AcceptanceCriteria:
    """The evidence that a rule needs to be accepted."""

    level: float = 0.1  # false discovery rate
    least: int = 8  # examples


Judge = Callable[[Sequence[tuple[Example, tuple[str, ...]]]], list[tuple[float, bool]]]
"""(example, rules shown) -> (log p(true), right) each."""


def judge_with(
    decoder: Decoder, pictures: Callable[[Sequence[int]], Sequence[Picture]], batches: Callable[[int], Iterable[range]]
) -> Judge:
    """System 2 as at inference, over fixed batches."""

    def judge(asked: Sequence[tuple[Example, tuple[str, ...]]]) -> list[tuple[float, bool]]:
        answers = []
        for batch in batches(len(asked)):
            part = [asked[i] for i in batch]
            questions = [replace(example.question, rules=rules) for example, rules in part]
            judged = decoder(pictures([example.index for example, _ in part]), questions)
            for (example, _), judgement in zip(part, judged, strict=True):
                priors = np.array([max(option.prior, 1e-12) for option in example.question.options])
                shares = posterior(judgement.log_likelihoods, priors)
                place = example.categories.index(example.truth)
                answers.append((float(np.log(max(shares[place], 1e-300))), int(shares.argmax()) == place))
        return answers

    return judge


def validate_rules(
    proposals: Sequence[Proposal], examples: Sequence[Example], judge: Judge, criteria: AcceptanceCriteria, *, most: int
) -> list[Experience]:
    """Every proposed rule with its evidence and its status.

    Args: most: rules shown at once at inference; the accepted set is tried in just that way.
    """
    asked = [(p, example) for p in proposals for example in examples if example.fold != p.fold and speaks_of(p.rule, example.categories)]
    without = _bare({example.index: example for _, example in asked}, judge)
    with_rule = judge([(example, (p.rule.rule,)) for p, example in asked])
    effects = [
        _compare([(without[example.index], answer) for (q, example), answer in zip(asked, with_rule, strict=True) if q is p])
        for p in proposals
    ]
    rules = _verdicts(proposals, effects, criteria)
    return rules if _together(proposals, rules, examples, judge, most).harmless else [_demoted(rule) for rule in rules]


def _verdicts(proposals: Sequence[Proposal], effects: Sequence[RuleEffect], criteria: AcceptanceCriteria) -> list[Experience]:
    p_values = [sign_flip_p(effect.gains) for effect in effects]
    significant = benjamini_hochberg(p_values, criteria.level) if proposals else []
    return [
        replace(
            proposal.rule,
            status=_status(effect, significant=sure, enough=len(effect.gains) >= criteria.least),
            p=p,
            n=len(effect.gains),
            gain=effect.gain,
            fixed=effect.fixed,
            broken=effect.broken,
        )
        for proposal, effect, p, sure in zip(proposals, effects, p_values, significant, strict=True)
    ]


def _status(effect: RuleEffect, *, significant: bool, enough: bool) -> Literal["accepted", "undecided", "rejected"]:
    if enough and not effect.harmless:
        return "rejected"
    return "accepted" if enough and significant and effect.harmless else "undecided"


def _together(
    proposals: Sequence[Proposal], rules: Sequence[Experience], examples: Sequence[Example], judge: Judge, most: int
) -> RuleEffect:
    """The accepted set against none, each example with the rules that were not learned on its half."""
    libraries = {
        fold: Library((rule for p, rule in zip(proposals, rules, strict=True) if p.fold != fold), most=most)
        for fold in {example.fold for example in examples}
    }
    recalled = [(example, tuple(rule.rule for rule in libraries[example.fold].recall(example.categories))) for example in examples]
    asked = [(example, shown) for example, shown in recalled if shown]
    without = _bare({example.index: example for example, _ in asked}, judge)
    return _compare([(without[example.index], answer) for (example, _), answer in zip(asked, judge(asked), strict=True)])


def _bare(examples: Mapping[int, Example], judge: Judge) -> dict[int, tuple[float, bool]]:
    return dict(zip(examples, judge([(example, ()) for example in examples.values()]), strict=True))


def _compare(pairs: Sequence[tuple[tuple[float, bool], tuple[float, bool]]]) -> RuleEffect:
    return RuleEffect(
        gains=np.array([after - before for (before, _), (after, _) in pairs]),
        fixed=sum(after and not before for (_, before), (_, after) in pairs),
        broken=sum(before and not after for (_, before), (_, after) in pairs),
    )


def _demoted(rule: Experience) -> Experience:
    return replace(rule, status="undecided") if rule.status == "accepted" else rule
