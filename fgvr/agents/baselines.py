"""Baselines that rank by an encoder's vectors alone, each in one line of arithmetic. Nothing is trained, and no MLLM is asked.

Shapes: B queries, N support images, C classes, d the encoder's width; rows are unit vectors. A rule maps queries (B, d) to logits (B, C).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents.fusion import entropy, ranked_result, softmax
from fgvr.knowledge.prototypes import Prototypes
from fgvr.protocols import Encoder
from fgvr.types import Candidate, FastResult, History, Picture

Rule = Callable[[np.ndarray], np.ndarray]
SHOWN = 10
ALPHA, BETA = 1.0, 5.5
"""Tip-Adapter's untrained cache (Zhang et al. 2022): weight of the cache, sharpness of its affinities."""
STRENGTHS = tuple(float(10**power) for power in range(6))
"""Inverse regularisation of the linear probe, chosen by cross-validation on the support images. Unit vectors want large values."""


class Ranking:
    """A `FastThinker` that ranks all classes by one rule."""

    def __init__(self, encoder: Encoder, ids: Sequence[str], rule: Rule) -> None:
        self._encoder, self._ids, self._rule = encoder, tuple(ids), rule

    def __call__(self, pictures: Sequence[Picture]) -> list[FastResult]:
        shares = softmax(self._rule(self._encoder.encode(pictures)).astype(np.float64))
        return [self._result(picture.sha256, row) for picture, row in zip(pictures, shares, strict=True)]

    def _result(self, sha256: str, shares: np.ndarray) -> FastResult:
        order = np.argsort(-shares, kind="stable")[:SHOWN]
        candidates = tuple(Candidate(self._ids[i], float(shares[i]), None, None) for i in order)
        result = ranked_result(sha256, candidates, History(0, 0, 0), rrf_weight=0.0)
        return replace(result, entropy=entropy(shares[order] / shares[order].sum()), agreement=True)  # there is one opinion only


def by_text(text: np.ndarray, temperature: float) -> Rule:
    """Zero-shot: cosine with each class's words, (C, d)."""
    return lambda queries: queries @ text.T / temperature


def nearest(known: Prototypes, neighbours: int) -> Rule:
    """k nearest support images, each voting with exp(cosine / tau) (Wu et al. 2018)."""

    def rule(queries: np.ndarray) -> np.ndarray:
        cosines = queries @ known.shots.T
        k = min(neighbours, cosines.shape[1])
        near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(queries), len(known.ids)))
        weights = np.exp((np.take_along_axis(cosines, near, axis=1) - cosines.max(axis=1, keepdims=True)) / known.temperature)
        for column in range(k):
            np.add.at(votes, (np.arange(len(queries)), known.owners[near[:, column]]), weights[:, column])
        return np.log(votes + 1e-9)

    return rule


def cache(known: Prototypes, text: np.ndarray) -> Rule:
    """Tip-Adapter without training: alpha exp(-beta (1 - cosine)) of each support image to its class, beside zero-shot logits."""
    one_hot = np.eye(len(known.ids), dtype=np.float32)[known.owners]
    zero_shot = by_text(text, known.temperature)
    return lambda queries: zero_shot(queries) + ALPHA * np.exp(-BETA * (1 - queries @ known.shots.T)) @ one_hot


def linear_probe(known: Prototypes, seed: int = 0) -> Rule:
    """Multinomial logistic regression on the support vectors. Cross-validation chooses its strength where every class has two."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    def probe(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000)

    fewest = int(np.bincount(known.owners).min())
    strength = STRENGTHS[len(STRENGTHS) // 2]
    if fewest > 1:
        folds = StratifiedKFold(min(fewest, 4), shuffle=True, random_state=seed)
        found = [cross_val_score(probe(c), known.shots, known.owners, cv=folds).mean() for c in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(found))]
    fitted = probe(strength).fit(known.shots, known.owners)

    def rule(queries: np.ndarray) -> np.ndarray:
        logits = np.full((len(queries), len(known.ids)), -100.0)  # a class without a support image
        logits[:, fitted.classes_] = fitted.predict_log_proba(queries)
        return logits

    return rule
