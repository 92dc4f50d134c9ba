"""System 2: the MLLM judges the shortlist. Decoders are restricted to the candidates, so no other answer can occur."""

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

from fgvr.agents import prompts
from fgvr.agents.fusion import softmax
from fgvr.errors import ConfigError
from fgvr.knowledge.classes import ClassRecord
from fgvr.knowledge.experience import Library
from fgvr.protocols import MLLM
from fgvr.types import FastResult, Picture, SlowResult

ScoreTarget = Literal["description", "name", "letter"]


@dataclass(frozen=True, slots=True)
class Option:
    """One candidate as System 2 is shown it."""

    category: str
    name: str
    description: str  # "" when the class has none
    prior: float  # System 1's probability
    exemplar: Picture | None = None  # one of its support images, where exemplars are shown


_OPEN_EXEMPLARS = 16  # images; of twelve million pixels each, half a GiB

Exemplar = Callable[[str, int | None], Picture | None]
"""(class id, fold whose images must not be shown) -> a support image of the class, None when there is no other."""


class Exemplars:
    """The first support image of each class, outside the fold that must not be shown. The last few images stay open."""

    def __init__(self, ids: Sequence[str], owners: Sequence[int], folds: Sequence[int], picture: Callable[[int], Picture]) -> None:
        """Args: ids: of the classes; owners, folds: class index and fold of each support image; picture: opens one by its index."""
        self._own = {category: [(i, folds[i]) for i, owner in enumerate(owners) if ids[owner] == category] for category in ids}
        self._picture = lru_cache(maxsize=_OPEN_EXEMPLARS)(picture)

    def __call__(self, category: str, without: int | None) -> Picture | None:
        return next((self._picture(i) for i, fold in self._own.get(category, ()) if fold != without), None)


@dataclass(frozen=True, slots=True)
class Question:
    """What System 2 is asked about one image. Nothing in it says which option is true."""

    options: tuple[Option, ...]
    rules: tuple[str, ...] = ()

    @property
    def exemplars(self) -> tuple[Picture, ...]:
        """One image per option, or none: a missing one would shift the places of the others."""
        shown = tuple(option.exemplar for option in self.options if option.exemplar is not None)
        return shown if len(shown) == len(self.options) else ()


class Shortlist:
    """Chooses the candidates that System 2 sees: the first m of System 1's, or every class (`slow.candidates=all`)."""

    def __init__(self, classes: Mapping[str, ClassRecord], *, candidates: int | str, exemplar: Exemplar | None = None) -> None:
        if candidates != "all" and (isinstance(candidates, str | bool) or candidates < 1):
            raise ConfigError(f"slow.candidates={candidates!r}: write a number from 1 up, or all")
        self._classes = classes
        self._candidates = candidates
        self._exemplar = exemplar

    def __call__(self, result: FastResult, *, own: tuple[str, int] | None = None) -> list[Option]:
        """Args: own: class and fold of a support image. Its own class is shown without anything that has met that fold."""
        priors = {candidate.category: candidate.probability for candidate in result.candidates}
        chosen = list(self._classes) if self._candidates == "all" else list(priors)[: int(self._candidates)]
        return [self._option(category, priors.get(category, 0.0), own) for category in chosen]

    def beyond(self, result: FastResult, shown: Sequence[Option]) -> list[Option]:
        """The candidates of System 1 that were not shown."""
        known = {option.category for option in shown}
        return [self._option(c.category, c.probability, None) for c in result.candidates if c.category not in known]

    def _option(self, category: str, prior: float, own: tuple[str, int] | None) -> Option:
        record = self._classes[category]
        fold = own[1] if own and own[0] == category else None
        description = record.description if fold is None else record.fold_descriptions[fold]
        return Option(category, record.name, description.text, prior, self._exemplar(category, fold) if self._exemplar else None)


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """A decoder's answer to one question."""

    log_likelihoods: np.ndarray  # nats per option; NaN for an option without words to judge
    rationale: str = ""
    readable: bool = True  # False: a reply that names no option

    def posterior(self, options: Sequence[Option]) -> np.ndarray:
        """The judgement as a distribution over the options, (K,)."""
        return posterior(self.log_likelihoods, np.array([max(option.prior, 1e-12) for option in options]))


class Decoder(Protocol):
    """Asks the MLLM a question and reads its answer as one log-likelihood per option."""

    @property
    def independent(self) -> bool:
        """Whether an option's judgement does not depend on the other options."""
        ...

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Judgement]: ...


class SlowThinking:
    """A `SlowThinker`: it shows the shortlist with the recalled rules, and turns the decoder's judgement into a distribution."""

    def __init__(self, decoder: Decoder, shortlist: Shortlist, library: Library | None = None, *, wide: bool = False) -> None:
        """Args: wide: also judge System 1's other candidates, for replays with another fusion. This changes no answer."""
        self._decoder = decoder
        self._shortlist = shortlist
        self._library = library or Library((), most=0)
        self._wide = wide and decoder.independent

    def __call__(self, pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]:
        questions = [self.question(result) for result in results]
        judged = self._decoder(pictures, questions)
        answers = [answer(question, judgement) for question, judgement in zip(questions, judged, strict=True)]
        return self._widened(pictures, results, questions, answers) if self._wide else answers

    def _widened(
        self, pictures: Sequence[Picture], results: Sequence[FastResult], questions: Sequence[Question], answers: Sequence[SlowResult]
    ) -> list[SlowResult]:
        """The same answers, with the log-likelihoods of the candidates that were not shown."""
        widened = list(answers)
        beyond = [self._shortlist.beyond(result, question.options) for result, question in zip(results, questions, strict=True)]
        some = [i for i, options in enumerate(beyond) if options]
        if some:
            judged = self._decoder([pictures[i] for i in some], [Question(tuple(beyond[i]), questions[i].rules) for i in some])
            for i, judgement in zip(some, judged, strict=True):
                more = nats(beyond[i], judgement.log_likelihoods)
                widened[i] = replace(answers[i], log_likelihoods={**answers[i].log_likelihoods, **more})
        return widened

    def question(self, result: FastResult) -> Question:
        options = tuple(self._shortlist(result))
        recalled = self._library.recall([option.category for option in options])
        return Question(options, tuple(rule.rule for rule in recalled))


class ScoreDecoder:
    """Scores each candidate by its log-likelihood given the image and one shared prompt. This is deterministic and cheap.

    `target` says what is scored: the candidate's description under "describe this picture" (generative matching, p(words | image)),
    or its name or letter as the answer to a multiple-choice question.
    """

    def __init__(self, mllm: MLLM, *, superclass: str, target: ScoreTarget) -> None:
        self._mllm = mllm
        self._superclass = superclass
        self._target: ScoreTarget = target

    @property
    def independent(self) -> bool:
        return self._target == "description"  # the other questions list their options

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Judgement]:
        asked = [self._ask(question) for question in questions]
        shown = pictures if self._target == "description" else with_exemplars(pictures, questions)
        scores = self._mllm.score(shown, [prompt for prompt, _ in asked], [answers for _, answers in asked], system=prompts.SYSTEM)
        return [
            Judgement(np.array([value if answer else np.nan for value, answer in zip(s.log_likelihoods, answers, strict=True)]))
            for s, (_, answers) in zip(scores, asked, strict=True)
        ]

    def _ask(self, question: Question) -> tuple[str, list[str]]:
        options = question.options
        if self._target == "description":
            return prompts.describe_image(self._superclass, question.rules), [option.description for option in options]
        answers = letters(options) if self._target == "letter" else [option.name for option in options]
        return choice(self._superclass, question, ending=self._target), answers


class ReasonDecoder:
    """Lets the MLLM write a rationale, then scores each letter as the answer that follows it.

    The rationale is free. The answer is one of the letters, whatever the rationale says.
    """

    independent = False  # the candidates stand in one question

    def __init__(self, mllm: MLLM, *, superclass: str, max_new_tokens: int) -> None:
        self._mllm = mllm
        self._superclass = superclass
        self._max_new_tokens = max_new_tokens

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Judgement]:
        asked = [choice(self._superclass, question, ending="reason") for question in questions]
        shown = with_exemplars(pictures, questions)
        replies = self._mllm.generate(shown, asked, system=prompts.SYSTEM, max_new_tokens=self._max_new_tokens)
        rationales = [reply.partition(prompts.ANSWER)[0].strip() for reply in replies]
        judged = letters_after(self._mllm, shown, asked, rationales, questions)
        return [Judgement(nats, rationale) for nats, rationale in zip(judged, rationales, strict=True)]


Shown = Picture | tuple[Picture, ...]


def letters_after(
    mllm: MLLM, shown: Sequence[Shown], asked: Sequence[str], rationales: Sequence[str], questions: Sequence[Question]
) -> list[np.ndarray]:
    """Log-likelihood of each letter as the answer after the MLLM's own rationale, whose likelihood is the same for every letter."""
    answers = [
        [f"{rationale} {prompts.ANSWER} {letter}".strip() for letter in letters(question.options)]
        for rationale, question in zip(rationales, questions, strict=True)
    ]
    return [np.array(s.log_likelihoods) for s in mllm.score(shown, asked, answers, system=prompts.SYSTEM)]


def with_exemplars(pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Shown]:
    """Each image, followed by the exemplars of its candidates where there are any."""
    return [(p, *q.exemplars) if q.exemplars else p for p, q in zip(pictures, questions, strict=True)]


def choice(superclass: str, question: Question, *, ending: str) -> str:
    """The multiple-choice prompt of a question."""
    names, descriptions = [o.name for o in question.options], [o.description for o in question.options]
    return prompts.choose(superclass, names, descriptions, question.rules, ending=ending, exemplars=bool(question.exemplars))


def letters(options: Sequence[Option]) -> list[str]:
    if len(options) > len(string.ascii_uppercase):
        raise ConfigError(f"letters tell {len(string.ascii_uppercase)} candidates apart, not {len(options)}: use slow.target=name")
    return list(string.ascii_uppercase[: len(options)])


def posterior(log_likelihoods: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Softmax over the options that were scored, (K,). An option without words keeps its System 1 share."""
    unscored = np.isnan(log_likelihoods)
    if unscored.all():
        return priors / priors.sum()
    kept = np.where(unscored, priors / max(priors.sum(), 1e-12), 0.0)
    return kept + softmax(np.where(unscored, -np.inf, log_likelihoods)) * (1 - kept.sum())


def nats(options: Sequence[Option], log_likelihoods: np.ndarray) -> dict[str, float]:
    """Log-likelihoods by class id, without the options that had no words to judge."""
    return {option.category: v for option, v in zip(options, log_likelihoods.tolist(), strict=True) if not math.isnan(v)}


def answer(question: Question, judged: Judgement) -> SlowResult:
    """The judgement as a distribution over the options, and its best option."""
    if not judged.readable:
        return SlowResult(None, {}, judged.rationale, question.rules, "unreadable")
    options = question.options
    probabilities = judged.posterior(options)
    best = options[int(probabilities.argmax())]
    return SlowResult(
        category=best.category,
        probabilities={option.category: p for option, p in zip(options, probabilities.tolist(), strict=True)},
        rationale=judged.rationale or (f"fits best what is known of {best.name}: {best.description}" if best.description else ""),
        rules=question.rules,
        log_likelihoods=nats(options, judged.log_likelihoods),
    )
