"""Validation of rules: System 2 answers support images with and without each rule, and a rule is accepted on evidence only.

A rule is accepted when the exact sign-flip p of the change in log p(true), corrected over all proposed rules, is within the level. The
rule must also fix at least as many answers as it breaks, on enough images. The accepted set as a whole must then do no harm.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fgvr.agents.reflect import Proposal
from fgvr.agents.slow import Decoder, Question
from fgvr.knowledge.experience import Library, speaks_of
from fgvr.types import Experience, Picture


@dataclass(frozen=True, slots=True)
class Example:
    """A support image that rules are validated on: the question to System 2, and the true class, which is never shown."""

    index: int
    fold: int
    question: Question
    truth: str  # among the options
    sha256: str = ""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(option.category for option in self.question.options)


Trial = tuple[Example, tuple[str, ...]]
"""An example, and the rules that are shown with it."""
Verdict = tuple[float, bool]
"""(log p(true), whether the answer is right) of a trial."""
Judge = Callable[[Sequence[Trial]], list[Verdict]]


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


def judge_with(
    decoder: Decoder, pictures: Callable[[Sequence[int]], Sequence[Picture]], batches: Callable[[int], Iterable[range]]
) -> Judge:
    """System 2 as at inference, over fixed batches."""

    def judge(trials: Sequence[Trial]) -> list[Verdict]:
        verdicts = []
        for batch in batches(len(trials)):
            part = [trials[i] for i in batch]
            questions = [replace(example.question, rules=rules) for example, rules in part]
            judged = decoder(pictures([example.index for example, _ in part]), questions)
            for (example, _), judgement in zip(part, judged, strict=True):
                shares = judgement.posterior(example.question.options)
                place = example.categories.index(example.truth)
                verdicts.append((float(np.log(max(shares[place], 1e-300))), int(shares.argmax()) == place))
        return verdicts

    return judge


def validate_rules(
    proposals: Sequence[Proposal], examples: Sequence[Example], judge: Judge, criteria: AcceptanceCriteria, *, most: int
) -> list[Experience]:
    """Every proposed rule with its evidence and its status.

    Args: most: rules shown at once at inference. The accepted set is tried in just that way.
    """
    trials = [
        (p, (example, (p.rule.rule,)))
        for p in proposals
        for example in examples
        if example.fold != p.fold and speaks_of(p.rule, example.categories)
    ]
    changes = _changes([trial for _, trial in trials], judge)
    effects = [_effect([change for (q, _), change in zip(trials, changes, strict=True) if q is p]) for p in proposals]
    p_values = [sign_flip_p(effect.gains) for effect in effects]
    significant = benjamini_hochberg(p_values, criteria.level)
    rules = [
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
    if _together(proposals, rules, examples, judge, most).harmless:
        return rules
    return [replace(rule, status="undecided") if rule.status == "accepted" else rule for rule in rules]


def _status(effect: RuleEffect, *, significant: bool, enough: bool) -> Literal["accepted", "undecided", "rejected"]:
    if enough and not effect.harmless:
        return "rejected"
    return "accepted" if enough and significant and effect.harmless else "undecided"


def _together(
    proposals: Sequence[Proposal], rules: Sequence[Experience], examples: Sequence[Example], judge: Judge, most: int
) -> RuleEffect:
    """The accepted set against no rules. Each example sees only the rules that were not learned on its fold."""
    libraries = {
        fold: Library((rule for p, rule in zip(proposals, rules, strict=True) if p.fold != fold), most=most)
        for fold in {example.fold for example in examples}
    }
    recalled = [(example, tuple(rule.rule for rule in libraries[example.fold].recall(example.categories))) for example in examples]
    return _effect(_changes([trial for trial in recalled if trial[1]], judge))


def _changes(trials: Sequence[Trial], judge: Judge) -> list[tuple[Verdict, Verdict]]:
    """Each trial's verdict without rules and with them. An example without rules is judged once."""
    examples = {example.index: example for example, _ in trials}
    without = dict(zip(examples, judge([(example, ()) for example in examples.values()]), strict=True))
    return [(without[example.index], verdict) for (example, _), verdict in zip(trials, judge(trials), strict=True)]


def _effect(changes: Sequence[tuple[Verdict, Verdict]]) -> RuleEffect:
    return RuleEffect(
        gains=np.array([after - before for (before, _), (after, _) in changes]),
        fixed=sum(after and not before for (_, before), (_, after) in changes),
        broken=sum(before and not after for (_, before), (_, after) in changes),
    )


RESAMPLES = 20_000
"""Sign patterns at most. Up to 14 values have fewer than that, and the test is then exact."""


def sign_flip_p(differences: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """One-sided p of a positive mean when each difference might as well have had the other sign (Fisher's randomisation test).

    Without values the result is 1.
    """
    from scipy.stats import permutation_test  # here, as its import takes half a second

    values = np.asarray(differences, float)
    values = np.pad(values, (0, max(0, 2 - len(values))))  # scipy wants two values, and a zero changes nothing
    rng = np.random.default_rng(seed)
    found = permutation_test(
        (values,), np.sum, permutation_type="samples", alternative="greater", n_resamples=RESAMPLES, batch=1000, vectorized=True, rng=rng
    )
    return float(found.pvalue)


def benjamini_hochberg(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected with a false discovery rate of at most `level` (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return (false_discovery_control(p_values) <= level).tolist() if len(p_values) else []
