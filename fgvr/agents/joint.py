"""System 1's second look: an image-text matcher (BLIP) reads the image together with each candidate's description.

The matcher says how likely image and words belong together. Its log-odds, softmaxed over the shortlist, are one more distribution.
`score` mixes it in: P = (1 - w) * P + w * softmax(log-odds). `rerank` divides System 1's own mass on its first k anew: P = mass * softmax.
A class without words keeps System 1's own share, and the matcher divides the others'. See docs/method.md, section 7.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents.fusion import Fusion, ranked_result, softmax
from fgvr.knowledge.classes import ClassRecord
from fgvr.knowledge.statistics import Statistics
from fgvr.protocols import FastThinker, JointEncoder
from fgvr.types import FastResult, Picture

_LEAST = 1e-6  # a match is never surer than this; float32 has no odds beyond


class Matcher:
    """Scores shortlists by the joint encoder, in one call for a whole batch of images."""

    def __init__(self, joint: JointEncoder, classes: Mapping[str, ClassRecord], *, fusion: Fusion) -> None:
        self._joint, self._classes, self._fusion = joint, classes, fusion

    def __call__(
        self, pictures: Sequence[Picture], results: Sequence[FastResult], own: Sequence[tuple[str, int]] | None = None
    ) -> list[FastResult]:
        """The same results with joint scores, ranked anew. Histories stay those of the classes that led before.

        Args: own: class and fold of each support image. Its own class is described by words that never met that fold.
        """
        top = self._fusion.joint_top if self._fusion.joint == "rerank" else None
        pairs = [
            (b, candidate.category, words)
            for b, result in enumerate(results)
            for candidate in result.candidates[:top]
            if (words := self._words(candidate.category, own[b] if own else None))
        ]
        scores: list[dict[str, float]] = [{} for _ in results]
        if pairs:
            matched = self._joint.match([pictures[b] for b, _, _ in pairs], [words for _, _, words in pairs])
            for (b, category, _), p in zip(pairs, matched, strict=True):
                scores[b][category] = float(p)
        return [rescore(result, found, fusion=self._fusion) for result, found in zip(results, scores, strict=True)]

    def _words(self, category: str, own: tuple[str, int] | None) -> str:
        record = self._classes[category]
        return (record.fold_descriptions[own[1]] if own and own[0] == category else record.description).text


def rescore(result: FastResult, matches: Mapping[str, float], *, fusion: Fusion) -> FastResult:
    """One result with the matcher's probabilities (class id -> match) worked in, as `fusion.joint` says."""
    matched = [i for i, c in enumerate(result.candidates) if c.category in matches]
    p = np.array([c.probability for c in result.candidates], np.float64)
    if matched:
        match = np.clip([matches[result.candidates[i].category] for i in matched], _LEAST, 1 - _LEAST)
        weight = 1.0 if fusion.joint == "rerank" else fusion.joint_weight
        p[matched] = (1 - weight) * p[matched] + weight * p[matched].sum() * softmax(np.log(match / (1 - match)))
    # A re-ranking keeps the first k first, because nothing below was compared with them.
    first = np.arange(len(p)) < (fusion.joint_top if fusion.joint == "rerank" else len(p))
    order = np.lexsort((np.arange(len(p)), -p, ~first))
    ranked = [replace(c, probability=float(p[i]), joint_score=matches.get(c.category)) for i in order for c in [result.candidates[i]]]
    return ranked_result(result.sha256, tuple(ranked), result.history, fusion.rrf_weight)


class JointRetrieval:
    """A `FastThinker`: retrieval, then the matcher. `statistics` are leave-one-out counts of this System 1, computed on first use."""

    def __init__(self, retrieval: FastThinker, matcher: Matcher, statistics: Callable[[], Statistics]) -> None:
        self._retrieval, self._matcher, self._statistics = retrieval, matcher, statistics

    def __call__(self, pictures: Sequence[Picture]) -> list[FastResult]:
        statistics = self._statistics()
        histories = dict(zip(statistics.ids, statistics.histories(), strict=True))
        results = self._matcher(pictures, self._retrieval(pictures))
        return [replace(result, history=histories[result.top.category]) for result in results]
