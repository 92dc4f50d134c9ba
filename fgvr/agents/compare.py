"""System 2 that compares two candidates at a time by what tells the two apart; the better one meets the next candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fgvr.agents.slow import Decoder, Judgement, Option, Question, letters
from fgvr.types import Picture


@dataclass(slots=True)
class _Contest:
    """One image's comparisons so far: nats per option on one scale, and the words of each comparison."""

    question: Question
    nats: list[float] = field(default_factory=lambda: [0.0])  # NaN for an option whose comparison could not be read
    best: int = 0
    won: dict[int, tuple[float, str]] = field(default_factory=dict)  # (odds, words) of the closest comparison that an option won

    @property
    def pair(self) -> Question:
        """The best one so far, and the next."""
        return replace(self.question, options=(self.question.options[self.best], self.question.options[len(self.nats)]))

    def settle(self, judgement: Judgement) -> None:
        """Takes the answer to `pair`."""
        following, pair = len(self.nats), self.pair
        if not judgement.readable:
            self.nats.append(float("nan"))
            return
        odds = float(np.subtract(*judgement.log_likelihoods[::-1]))
        self.nats.append(self.nats[self.best] + odds)
        self.best = following if odds > 0 else self.best
        if abs(odds) < self.won.get(self.best, (np.inf, ""))[0]:
            self.won[self.best] = abs(odds), f"{_named(pair.options)}: {judgement.rationale}"


class CompareDecoder:
    """System 1's first candidate meets the second, the better of them the third, and so on: one short question less than candidates.

    A comparison gives the log-odds of its two candidates. The one that comes new stands so much above or below the best one so far, and so
    all are ordered. The words are those of the closest comparison that the answer won.
    """

    independent = False  # each question holds two candidates

    def __init__(self, asks: Decoder) -> None:
        """Args: asks: how a question of two candidates is answered, with a rationale."""
        self._asks = asks

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Judgement]:
        contests = [_Contest(question) for question in questions]
        while waiting := [i for i, contest in enumerate(contests) if len(contest.nats) < len(contest.question.options)]:
            judged = self._asks([pictures[i] for i in waiting], [contests[i].pair for i in waiting])
            for i, judgement in zip(waiting, judged, strict=True):
                contests[i].settle(judgement)
        return [_judgement(contest) for contest in contests]


def _judgement(contest: _Contest) -> Judgement:
    _, words = contest.won.get(contest.best, (0.0, ""))
    if len(contest.nats) > 1 and not contest.won:
        return Judgement(np.full(len(contest.nats), np.nan), words, readable=False)
    return Judgement(np.array(contest.nats), words)


def _named(options: Sequence[Option]) -> str:
    return " or ".join(f"{letter} {option.name}" for letter, option in zip(letters(options), options, strict=True))
