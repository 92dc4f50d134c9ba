"""The final answer when both systems have spoken: log-linear fusion with one fitted weight or, as published, a second question."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents.fusion import softmax
from fgvr.agents.slow import Decoder, Question, Shortlist
from fgvr.agents.trigger import lower_bound
from fgvr.protocols import SlowThinker
from fgvr.types import FastResult, Picture, SlowResult
from fgvr.utils.lazy import Lazy

_FLOOR = 1e-6  # a class that System 1 did not list is unlikely, not impossible


class LogLinearFusion:
    """p(c) ~ fast(c)^(1 - weight) * slow(c)^weight over the candidates that System 2 judged. Weight 1 is System 2 alone."""

    def __init__(self, *, weight: float | Callable[[], float]) -> None:
        """Args: weight: a number, or a function that finds it when it is first needed."""
        self._weight = Lazy(weight if callable(weight) else lambda: weight)

    @property
    def weight(self) -> float:
        return self._weight()

    def __call__(self, fast: FastResult, slow: SlowResult) -> tuple[str, float]:
        """The winning class id and its fused probability."""
        ids = list(slow.probabilities)
        fused = fuse_answers(_fast_shares(fast, ids), np.array([slow.probabilities[c] for c in ids]), self.weight)
        best = int(fused.argmax())
        return ids[best], float(fused[best])


def fuse_answers(fast: np.ndarray, slow: np.ndarray, weight: float | np.ndarray) -> np.ndarray:
    """Normalised log-linear fusion of two distributions over the same candidates, (K,); (W, K) for weights of shape (W, 1)."""
    return softmax((1 - weight) * np.log(np.maximum(fast, _FLOOR)) + weight * np.log(np.maximum(slow, 1e-300)))


def fit_weight(answers: Sequence[tuple[FastResult, Mapping[str, float], str]]) -> float:
    """The weight in {0, .01, ..., 1} with the highest mean log p(truth); 1 when there are no answers.

    Args:
        answers: per support image System 1's leave-one-out result, System 2's probabilities, and the true class id.
    """
    weights = np.linspace(0, 1, 101)
    truths = [
        fuse_answers(_fast_shares(fast, list(slow)), np.array(list(slow.values())), weights[:, None])[:, list(slow).index(truth)]
        for fast, slow, truth in answers
        if truth in slow
    ]
    return float(weights[int(np.log(np.maximum(truths, 1e-12)).mean(axis=0).argmax())]) if truths else 1.0


class Reprompt:
    """The published arbitration: where the systems disagree and neither is sure, the MLLM chooses between their two answers.

    System 2's answer stands from .80 on. Else System 1's stands at .75 with a history bound of .70. Else System 2's stands from .70 on,
    if System 1's probability is below .70.
    """

    def __init__(self, think: SlowThinker, decoder: Decoder, shortlist: Shortlist) -> None:
        self._think, self._decoder, self._shortlist = think, decoder, shortlist

    def __call__(self, pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]:
        answers = list(self._think(pictures, results))
        verdicts = [winner(fast, slow) for fast, slow in zip(results, answers, strict=True)]
        for i in (i for i, verdict in enumerate(verdicts) if verdict == "fast"):
            split = {results[i].top.category: 1.0, answers[i].category or "": 0.0}
            answers[i] = _divided(answers[i], split, f"System 1 stands: {results[i].top.probability:.2f}")
        undecided = [i for i, verdict in enumerate(verdicts) if verdict == "ask"]
        if undecided:
            asked = [self._question(results[i], answers[i]) for i in undecided]
            for i, question, judged in zip(undecided, asked, self._decoder([pictures[i] for i in undecided], asked), strict=True):
                if judged.readable:  # else the first answer stands
                    shares = judged.posterior(question.options)
                    split = {option.category: float(p) for option, p in zip(question.options, shares, strict=True)}
                    answers[i] = _divided(answers[i], split, judged.rationale or "asked again between the two systems' answers")
        return answers

    def _question(self, fast: FastResult, slow: SlowResult) -> Question:
        both = (fast.top.category, slow.category)
        return Question(tuple(option for option in self._shortlist(fast) if option.category in both), slow.rules)


def winner(fast: FastResult, slow: SlowResult) -> str:
    """Whose answer stands without a second question: `slow` or `fast`; `ask` where neither is sure."""
    if slow.category is None or slow.category == fast.top.category:
        return "slow"
    sure, first = slow.probabilities[slow.category], fast.top.probability
    if sure >= 0.80:
        return "slow"
    if first >= 0.75 and lower_bound(fast, eta=1.0, alpha=0.5) >= 0.70:
        return "fast"
    return "slow" if sure >= 0.70 and first < 0.70 else "ask"


def _divided(slow: SlowResult, split: Mapping[str, float], why: str) -> SlowResult:
    """The probability of the two answers, divided anew. The others keep theirs."""
    mass = sum(slow.probabilities.get(category, 0.0) for category in split)
    shares = {**slow.probabilities, **{category: mass * share for category, share in split.items()}}
    best = max(split, key=lambda category: split[category])
    # The independent judgements no longer give this answer, so they are not kept for replays.
    return replace(slow, category=best, probabilities=shares, rationale="\n".join(filter(None, (slow.rationale, why))), log_likelihoods={})


def _fast_shares(fast: FastResult, ids: Sequence[str]) -> np.ndarray:
    known = {candidate.category: candidate.probability for candidate in fast.candidates}
    return np.array([known.get(category, 0.0) for category in ids])
