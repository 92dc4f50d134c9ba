"""Learns rules from System 2's failures: answer as at inference, reflect on the failures, merge the rules, keep those with evidence."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from fgvr.agents.reflect import Proposal, Reflector, WrongAnswer, merge, sample
from fgvr.agents.rule_validation import AcceptanceCriteria, Example, judge_with, validate_rules
from fgvr.agents.slow import Decoder, Judgement
from fgvr.protocols import Encoder
from fgvr.types import Experience, Picture
from fgvr.utils.progress import track


@dataclass(frozen=True, slots=True)
class LearningReport:
    """The learned rules, and counts of support images on the way to them."""

    rules: tuple[Experience, ...]
    answered: int  # escalated images that System 2 was tried on
    failures: int
    reflected: int  # failures shown to the MLLM again
    unreadable: int  # its answers that stated no rule

    def __str__(self) -> str:
        status = {status: sum(rule.status == status for rule in self.rules) for status in ("accepted", "undecided", "rejected")}
        asked = f"{self.failures} of {self.answered} doubtful support images answered wrong, {self.reflected} reflected on"
        read = f"{len(self.rules)} rules tried" + (f", {self.unreadable} answers stated none" if self.unreadable else "")
        return f"{asked}: {read}; " + ", ".join(f"{count} {name}" for name, count in status.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceLearner:
    """The models as functions, and the settings."""

    decoder: Decoder
    reflector: Reflector
    encoder: Encoder
    pictures: Callable[[Sequence[int]], Sequence[Picture]]  # support images by index
    batches: Callable[[int], Iterable[range]]  # borders depend on positions alone, so that a resumed run repeats the same calls
    failures: int  # reflected on at most
    alike: float  # cosine from which two rules mean the same
    criteria: AcceptanceCriteria
    most: int  # rules shown at once

    def learn(self, examples: Sequence[Example], doubtful: Collection[int]) -> LearningReport:
        """Args: doubtful: indices of the support images that the trigger would escalate to System 2."""
        asked = [example for example in examples if example.index in set(doubtful)]
        failed = self._answer(asked)
        chosen = sample(failed, self.failures)
        proposed = self._reflect(chosen)
        proposals = merge((p for p in proposed if p is not None), self.encoder, alike=self.alike)
        judge = judge_with(self.decoder, self.pictures, self.batches)
        rules = validate_rules(proposals, examples, judge, self.criteria, most=self.most)
        return LearningReport(tuple(rules), len(asked), len(failed), len(chosen), sum(p is None for p in proposed))

    def _answer(self, examples: Sequence[Example]) -> list[WrongAnswer]:
        """The failures of System 2 with exactly the prompt of inference, which does not say what is true."""
        failures = []
        for batch in track(list(self.batches(len(examples))), "answers"):
            part = [examples[i] for i in batch]
            judged = self.decoder(self.pictures([example.index for example in part]), [example.question for example in part])
            failures += [f for example, judgement in zip(part, judged, strict=True) if (f := _failure(example, judgement))]
        return failures

    def _reflect(self, failures: Sequence[WrongAnswer]) -> list[Proposal | None]:
        proposed: list[Proposal | None] = []
        for batch in track(list(self.batches(len(failures))), "reflections"):
            part = [failures[i] for i in batch]
            proposed += self.reflector(self.pictures([failure.index for failure in part]), part)
        return proposed


def _failure(example: Example, judgement: Judgement) -> WrongAnswer | None:
    """None for a right answer, and for one that cannot be read."""
    options = example.question.options
    answer = options[int(judgement.posterior(options).argmax())]
    if answer.category == example.truth or not judgement.readable:
        return None
    truth = next(option for option in options if option.category == example.truth)
    return WrongAnswer(example.index, example.sha256, example.fold, truth, answer)
