"""The last word when both systems have spoken: log-linear fusion with one fitted weight or, as published, asking again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents.slow import Decoder, Question, Shortlist, posterior
from fgvr.agents.trigger import lower_bound
from fgvr.protocols import SlowThinker
from fgvr.types import FastResult, Picture, SlowResult

_FLOOR = 1e-6  # a class System 1 did not list is unlikely, not impossible


class LogLinearFusion:
    """p(c) ~ fast(c)^(1 - weight) * slow(c)^weight over the candidates System 2 judged. weight 1 = System 2 alone."""

    def __init__(self, *, weight: float | Callable[[], float]) -> None:
        """Args: weight: a number, or how to find it when it is first needed."""
        self._weight = weight

    @property
    def weight(self) -> float:
        if callable(self._weight):
            self._weight = self._weight()
        return self._weight

    def __call__(self, fast: FastResult, slow: SlowResult) -> tuple[str, float]:
        """The winning class id and its fused probability."""
        ids = list(slow.probabilities)
        fused = fuse_answers(_fast_shares(fast, ids), np.array([slow.probabilities[c] for c in ids]), self.weight)
        best = int(fused.argmax())
        return ids[best], float(fused[best])


def fuse_answers(fast: np.ndarray, slow: np.ndarray, weight: float | np.ndarray) -> np.ndarray:
    """Normalised log-linear fusion of two distributions over the same candidates (K,); of weights (W, 1) all at once, (W, K)."""
    logits = (1 - weight) * np.log(np.maximum(fast, _FLOOR)) + weight * np.log(np.maximum(slow, 1e-300))
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def fit_weight(answers: Sequence[tuple[FastResult, Mapping[str, float], str]]) -> float:
    """The weight in {0, .01, ..., 1} with the highest mean log p(truth); 1 when there are no answers.

    Args:
        answers: per support image System 1's leave-one-out result, System 2's probabilities, and the true class id.
    """
    cases = [
        (_fast_shares(fast, list(slow)), np.array(list(slow.values())), list(slow).index(truth))
        for fast, slow, truth in answers
        if truth in slow
    ]
    if not cases:
        return 1.0
    weights = np.linspace(0, 1, 101)
    truths = np.stack([fuse_answers(f, s, weights[:, None])[:, t] for f, s, t in cases])
    return float(weights[int(np.log(np.maximum(truths, 1e-12)).mean(axis=0).argmax())])


class Reprompt:
    """The published arbitration: where the systems disagree and neither is sure, the MLLM chooses between their two answers.

    System 2 stands from .80 on; else System 1 at .75 with a history bound of .70; else System 2 from .70 on against a System 1 below .70.
    """

    def __init__(self, think: SlowThinker, decoder: Decoder, shortlist: Shortlist) -> None:
        self._think, self._decoder, self._shortlist = think, decoder, shortlist

    def __call__(self, pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]:
        answers = list(self._think(pictures, results))
        open_cases = []
        for i, (fast, slow) in enumerate(zip(results, answers, strict=True)):
            verdict = stands(fast, slow)
            if verdict == "fast":
                answers[i] = _settled(
                    slow, {fast.top.category: 1.0, slow.category or "": 0.0}, f"System 1 stands: {fast.top.probability:.2f}"
                )
            elif verdict == "ask":
                open_cases.append(i)
        if open_cases:
            asked = [self._question(results[i], answers[i]) for i in open_cases]
            for i, question, judged in zip(open_cases, asked, self._decoder([pictures[i] for i in open_cases], asked), strict=True):
                if not judged.readable:  # the first answer stands
                    continue
                shares = posterior(judged.log_likelihoods, np.array([max(o.prior, 1e-12) for o in question.options]))
                split = {option.category: float(p) for option, p in zip(question.options, shares, strict=True)}
                answers[i] = _settled(answers[i], split, judged.rationale or "asked again between the two systems' answers")
        return answers

    def _question(self, fast: FastResult, slow: SlowResult) -> Question:
        both = (fast.top.category, slow.category)
        return Question(tuple(option for option in self._shortlist(fast) if option.category in both), slow.rules)


def stands(fast: FastResult, slow: SlowResult) -> str:
    """Whose answer stands without asking again: `slow`, `fast`, or `ask`."""
    if slow.category is None or slow.category == fast.top.category:
        return "slow"
    sure, first = slow.probabilities[slow.category], fast.top.probability
    if sure >= 0.80:
        return "slow"
    if first >= 0.75 and lower_bound(fast, eta=1.0, alpha=0.5) >= 0.70:
        return "fast"
    return "slow" if sure >= 0.70 and first < 0.70 else "ask"


def _settled(slow: SlowResult, split: Mapping[str, float], why: str) -> SlowResult:
    """The mass of the two answers, divided anew; others keep theirs."""
    mass = sum(slow.probabilities.get(category, 0.0) for category in split)
    shares = {**slow.probabilities, **{category: mass * share for category, share in split.items()}}
    best = max(split, key=lambda category: split[category])
    # What was judged alone no longer gives this answer, so it is not kept for replays.
    return replace(slow, category=best, probabilities=shares, rationale="\n".join(filter(None, (slow.rationale, why))), log_likelihoods={})


def _fast_shares(fast: FastResult, ids: Sequence[str]) -> np.ndarray:
    known = {candidate.category: candidate.probability for candidate in fast.candidates}
    return np.array([known.get(category, 0.0) for category in ids])
