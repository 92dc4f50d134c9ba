"""System 2: the MLLM judges the shortlist. Decoders are restricted to the candidates, so an answer outside the list cannot happen."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fgvr.agents import prompts
from fgvr.errors import ConfigError
from fgvr.knowledge.classes import ClassRecord
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


class Shortlist:
    """Which candidates System 2 sees: the first m of System 1's, or every class (`slow.candidates=all`)."""

    def __init__(self, classes: Mapping[str, ClassRecord], *, candidates: int | str) -> None:
        if candidates != "all" and (isinstance(candidates, str | bool) or candidates < 1):
            raise ConfigError(f"slow.candidates={candidates!r}: write a number from 1 up, or all")
        self._classes = classes
        self._candidates = candidates

    def __call__(self, result: FastResult, *, own: tuple[str, int] | None = None) -> list[Option]:
        """Args: own: class and fold of a support image, whose own class is then described by words that never saw it."""
        priors = {candidate.category: candidate.probability for candidate in result.candidates}
        chosen = list(self._classes) if self._candidates == "all" else list(priors)[: int(self._candidates)]
        return [self._option(category, priors.get(category, 0.0), own) for category in chosen]

    def _option(self, category: str, prior: float, own: tuple[str, int] | None) -> Option:
        record = self._classes[category]
        description = record.fold_descriptions[own[1]] if own and own[0] == category else record.description
        return Option(category, record.name, description.text, prior)


class ScoreDecoder:
    """Log-likelihood of each candidate given the image and one shared prompt: deterministic, cheap, a distribution.

    `target` says what is scored: the candidate's description under "describe this picture" (generative matching: p(words | image)),
    or its name or letter as the answer to a multiple-choice question.
    """

    def __init__(self, mllm: MLLM, shortlist: Shortlist, *, superclass: str, target: ScoreTarget) -> None:
        self._mllm = mllm
        self._shortlist = shortlist
        self._superclass = superclass
        self._target: ScoreTarget = target

    def __call__(self, pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]:
        shown = [self._shortlist(result) for result in results]
        return [_answer(options, scores) for options, scores in zip(shown, self.log_likelihoods(pictures, shown), strict=True)]

    def log_likelihoods(self, pictures: Sequence[Picture], shown: Sequence[Sequence[Option]]) -> list[np.ndarray]:
        """Per picture, nats per option; NaN for an option without words to score."""
        asked = [self._ask(options) for options in shown]
        scores = self._mllm.score(
            pictures, [prompt for prompt, _ in asked], [answers for _, answers in asked], system=prompts.SYSTEM
        )
        return [
            np.array([value if answer else np.nan for value, answer in zip(s.log_likelihoods, answers, strict=True)])
            for s, (_, answers) in zip(scores, asked, strict=True)
        ]

    def _ask(self, options: Sequence[Option]) -> tuple[str, list[str]]:
        names, words = [o.name for o in options], [o.description for o in options]
        if self._target == "description":
            return prompts.describe_image(self._superclass), words
        if self._target == "name":
            return prompts.choose(self._superclass, names, words, (), ending="name"), names
        if len(options) > len(string.ascii_uppercase):
            raise ConfigError(f"slow.target=letter can tell {len(string.ascii_uppercase)} candidates apart, not {len(options)}: use name")
        return prompts.choose(self._superclass, names, words, (), ending="letter"), list(string.ascii_uppercase[: len(options)])


def posterior(log_likelihoods: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Softmax over the options that were scored; one without words keeps its System 1 share: neither lifted nor sunk."""
    unscored = np.isnan(log_likelihoods)
    if unscored.all():
        return priors / priors.sum()
    kept = np.where(unscored, priors / max(priors.sum(), 1e-12), 0.0)
    exp = np.where(unscored, 0.0, np.exp(log_likelihoods - np.nanmax(log_likelihoods)))
    return kept + exp / exp.sum() * (1 - kept.sum())


def _answer(options: Sequence[Option], log_likelihoods: np.ndarray) -> SlowResult:
    probabilities = posterior(log_likelihoods, np.array([max(option.prior, 1e-12) for option in options]))
    best = int(probabilities.argmax())
    said = f"best matches the description of {options[best].name}: {options[best].description}" if options[best].description else ""
    return SlowResult(
        category=options[best].category,
        probabilities={option.category: float(p) for option, p in zip(options, probabilities, strict=True)},
        rationale=said,
    )
