"""System 1's arithmetic: similarities in, ranked candidates out. Pure functions on arrays; algorithm.md 2.

P = lambda * softmax(image / tau) + (1 - lambda) * softmax(text / tau) over the union U of both top-k lists;
RRF(c) = 1 / (60 + rank_image) + 1 / (60 + rank_text); confidence = P(top) + 0.1 * RRF(top).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgvr.knowledge.prototypes import Similarities
from fgvr.types import Candidate, FastResult, History


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """The knobs of System 1 (`fusion` group)."""

    top_k: int = 5  # per modality; the union has up to twice as many
    image_weight: float = 0.3  # lambda
    name_weight: float = 0.5  # share of the class-name prompts in the text score, where the base has them
    rrf_weight: float = 0.1
    temperature: float | None = None  # tau; None = the encoder's own, 1 / logit_scale


RRF_OFFSET = 60  # Cormack et al. 2009


def fuse(
    hashes: Sequence[str],
    similarities: Similarities,
    ids: Sequence[str],
    histories: Sequence[History],
    *,
    fusion: Fusion,
    temperature: float,
) -> list[FastResult]:
    """Rank the classes for each of B images.

    Args:
        hashes: (B,) content hashes of the images.
        similarities: cosines, (B, C) each.
        ids: (C,) class ids.
        histories: (C,) history of each class.
        temperature: tau, used unless `fusion.temperature` overrides it.
    """
    tau = fusion.temperature or temperature
    image, text = _known(similarities.image), _known(_text_scores(similarities, fusion.name_weight))
    image_ranks, text_ranks = ranks(image), ranks(text)
    shortlist = (image_ranks <= fusion.top_k) | (text_ranks <= fusion.top_k)
    probabilities = fusion.image_weight * _softmax(image / tau, shortlist) + (1 - fusion.image_weight) * _softmax(text / tau, shortlist)
    rrf = 1 / (RRF_OFFSET + image_ranks) + 1 / (RRF_OFFSET + text_ranks)
    # Ties (equal probabilities) fall to the better reciprocal rank, then to the class order: never to chance.
    order = np.lexsort((-rrf, -probabilities), axis=1)
    sizes = shortlist.sum(axis=1)
    results = []
    for b, sha256 in enumerate(hashes):
        chosen = order[b, : sizes[b]]
        p = probabilities[b, chosen].astype(np.float64)
        results.append(
            FastResult(
                sha256=sha256,
                candidates=tuple(_candidate(b, c, ids, probabilities, similarities, image_ranks, text_ranks, fusion.top_k) for c in chosen),
                confidence=float(p[0] + fusion.rrf_weight * rrf[b, chosen[0]]),
                margin=float(p[0] - p[1]) if len(p) > 1 else float(p[0]),
                entropy=entropy(p),
                agreement=bool(image_ranks[b, chosen[0]] == 1 and text_ranks[b, chosen[0]] == 1),
                history=histories[chosen[0]],
            )
        )
    return results


def ranks(scores: np.ndarray) -> np.ndarray:
    """(B, C) ranks from 1, best first; ties in class order."""
    order = np.argsort(-scores, axis=1, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.arange(1, scores.shape[1] + 1)[None, :], axis=1)
    return out


def entropy(probabilities: np.ndarray) -> float:
    """Shannon entropy in nats."""
    p = probabilities[probabilities > 0]
    return max(0.0, float(-(p * np.log(p)).sum()))


def _text_scores(similarities: Similarities, name_weight: float) -> np.ndarray:
    if similarities.name is None or name_weight == 0:
        return similarities.text
    mixed = (1 - name_weight) * similarities.text + name_weight * similarities.name
    # A class whose description failed stands on its name alone.
    return np.where(np.isnan(similarities.text), similarities.name, mixed)


def _known(scores: np.ndarray) -> np.ndarray:
    """A class without this kind of prototype gets the row's mean: neither lifted nor sunk by what is missing."""
    missing = np.isnan(scores)
    if not missing.any():
        return scores
    if missing.all():
        return np.zeros_like(scores)
    filler = np.nanmean(np.where(missing.all(axis=1, keepdims=True), 0.0, scores), axis=1, keepdims=True)
    return np.where(missing, filler, scores)


def _softmax(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    masked = np.where(mask, logits, -np.inf)
    exp = np.exp(masked - masked.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def _candidate(
    b: int,
    c: int,
    ids: Sequence[str],
    probabilities: np.ndarray,
    similarities: Similarities,
    image_ranks: np.ndarray,
    text_ranks: np.ndarray,
    top_k: int,
) -> Candidate:
    def rank(table: np.ndarray) -> int | None:
        return int(table[b, c]) if table[b, c] <= top_k else None

    def score(table: np.ndarray) -> float | None:
        return None if np.isnan(table[b, c]) else float(table[b, c])

    return Candidate(
        category=ids[c],
        probability=float(probabilities[b, c]),
        image_score=score(similarities.image),
        text_score=score(similarities.text),
        name_score=None if similarities.name is None else score(similarities.name),
        image_rank=rank(image_ranks),
        text_rank=rank(text_ranks),
    )
