"""Rules on trial: each is tried on support images it was not learned from, with and without it, and accepted on evidence only.

Accepted: the exact sign-flip p of the change in log p(true), corrected over all proposed rules, is within the level; it mends at least as
many answers as it breaks; it was tried on enough images. The accepted set must then also do no harm as a whole.
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
class Exam:
    """A support image as a rule is tried on it: what System 2 would be shown, and what is true (never shown)."""

    index: int
    fold: int
    question: Question
    truth: str  # among the options
    sha256: str = ""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(option.category for option in self.question.options)


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What rules changed on the exams they were tried on."""

    gains: np.ndarray  # (n,) change in log p(true), nats
    fixed: int
    broken: int

    @property
    def gain(self) -> float | None:
        """Mean over the exams, nats; None where there was none."""
        return float(self.gains.mean()) if len(self.gains) else None

    @property
    def harmless(self) -> bool:
        return self.fixed >= self.broken and (self.gain is None or self.gain >= 0)


@dataclass(frozen=True, slots=True)
class Bar:
    """What evidence a rule needs."""

    level: float = 0.1  # false discovery rate
    least: int = 8  # exams


Judge = Callable[[Sequence[tuple[Exam, tuple[str, ...]]]], list[tuple[float, bool]]]
"""(exam, rules shown) -> (log p(true), right) each."""


def judge_with(
    decoder: Decoder, pictures: Callable[[Sequence[int]], Sequence[Picture]], batches: Callable[[int], Iterable[range]]
) -> Judge:
    """System 2 as at inference, over fixed batches."""

    def judge(asked: Sequence[tuple[Exam, tuple[str, ...]]]) -> list[tuple[float, bool]]:
        answers = []
        for batch in batches(len(asked)):
            part = [asked[i] for i in batch]
            questions = [replace(exam.question, rules=rules) for exam, rules in part]
            judged = decoder(pictures([exam.index for exam, _ in part]), questions)
            for (exam, _), judgement in zip(part, judged, strict=True):
                priors = np.array([max(option.prior, 1e-12) for option in exam.question.options])
                shares = posterior(judgement.log_likelihoods, priors)
                place = exam.categories.index(exam.truth)
                answers.append((float(np.log(max(shares[place], 1e-300))), int(shares.argmax()) == place))
        return answers

    return judge


def try_all(proposals: Sequence[Proposal], exams: Sequence[Exam], judge: Judge, bar: Bar, *, most: int) -> list[Experience]:
    """Every proposed rule with its evidence and its status.

    Args: most: rules shown at once at inference; the accepted set is tried in just that way.
    """
    asked = [(p, exam) for p in proposals for exam in exams if exam.fold != p.fold and speaks_of(p.rule, exam.categories)]
    bare = _bare({exam.index: exam for _, exam in asked}, judge)
    with_rule = judge([(exam, (p.rule.rule,)) for p, exam in asked])
    trials = [
        _compare([(bare[exam.index], answer) for (q, exam), answer in zip(asked, with_rule, strict=True) if q is p]) for p in proposals
    ]
    rules = _verdicts(proposals, trials, bar)
    return rules if _together(proposals, rules, exams, judge, most).harmless else [_demoted(rule) for rule in rules]


def _verdicts(proposals: Sequence[Proposal], trials: Sequence[Trial], bar: Bar) -> list[Experience]:
    p_values = [sign_flip_p(trial.gains) for trial in trials]
    significant = benjamini_hochberg(p_values, bar.level) if proposals else []
    return [
        replace(
            proposal.rule,
            status=_status(trial, significant=sure, enough=len(trial.gains) >= bar.least),
            p=p,
            n=len(trial.gains),
            gain=trial.gain,
            fixed=trial.fixed,
            broken=trial.broken,
        )
        for proposal, trial, p, sure in zip(proposals, trials, p_values, significant, strict=True)
    ]


def _status(trial: Trial, *, significant: bool, enough: bool) -> Literal["accepted", "undecided", "rejected"]:
    if enough and not trial.harmless:
        return "rejected"
    return "accepted" if enough and significant and trial.harmless else "undecided"


def _together(proposals: Sequence[Proposal], rules: Sequence[Experience], exams: Sequence[Exam], judge: Judge, most: int) -> Trial:
    """The accepted set against none, each exam with the rules that were not learned on its half."""
    libraries = {
        fold: Library((rule for p, rule in zip(proposals, rules, strict=True) if p.fold != fold), most=most)
        for fold in {exam.fold for exam in exams}
    }
    recalled = [(exam, tuple(rule.rule for rule in libraries[exam.fold].recall(exam.categories))) for exam in exams]
    asked = [(exam, shown) for exam, shown in recalled if shown]
    bare = _bare({exam.index: exam for exam, _ in asked}, judge)
    return _compare([(bare[exam.index], answer) for (exam, _), answer in zip(asked, judge(asked), strict=True)])


def _bare(exams: Mapping[int, Exam], judge: Judge) -> dict[int, tuple[float, bool]]:
    return dict(zip(exams, judge([(exam, ()) for exam in exams.values()]), strict=True))


def _compare(pairs: Sequence[tuple[tuple[float, bool], tuple[float, bool]]]) -> Trial:
    return Trial(
        gains=np.array([after - before for (before, _), (after, _) in pairs]),
        fixed=sum(after and not before for (_, before), (_, after) in pairs),
        broken=sum(before and not after for (_, before), (_, after) in pairs),
    )


def _demoted(rule: Experience) -> Experience:
    return replace(rule, status="undecided") if rule.status == "accepted" else rule
