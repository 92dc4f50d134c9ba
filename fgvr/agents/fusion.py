"""System 1's arithmetic: similarities in, ranked candidates out. Pure functions on arrays.

P = lambda * softmax(image / tau) + (1 - lambda) * softmax(text / tau) over the union U of both top-k lists;
RRF(c) = 1 / (60 + rank_image) + 1 / (60 + rank_text); confidence = P(top) + 0.1 * RRF(top). See docs/method.md, section 2.
Where no class has words (an encoder without a text side), P and RRF are those of the images alone, and nothing agrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fgvr.errors import ConfigError, StoreError
from fgvr.knowledge.linear import LinearClassifier
from fgvr.knowledge.prototypes import Prototypes, Similarities
from fgvr.types import Candidate, FastResult, History

RRF_OFFSET = 60  # Cormack et al. 2009


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """The settings of System 1 (`fusion` group)."""

    top_k: int = 5  # per modality; the union has up to twice as many
    image_weight: float = 0.3  # lambda
    name_weight: float = 0.5  # share of the class-name prompts in the text score, where the base has them
    rrf_weight: float = 0.1
    temperature: float | None = None  # tau; None = the encoder's own, 1 / logit_scale
    joint: str | None = None  # the image-text matcher: `score` mixes it in, `rerank` orders the first `joint_top`; None = not asked
    joint_weight: float = 0.5  # share of the matcher in the probability, with `score`
    joint_top: int = 5  # how many are ordered anew, with `rerank`
    classifier: str = "prototypes"  # what scores images: cosines with class means, or `linear`, a shrunken linear discriminant
    shrinkage: float = 0.8  # of the covariance within classes, with `linear`; 1 = nearest mean


def classifier_of(prototypes: Prototypes, fusion: Fusion) -> Prototypes | LinearClassifier:
    """What compares images with the classes of a base."""
    return _linear(prototypes, fusion.shrinkage) if fusion.classifier == "linear" else prototypes


@lru_cache(maxsize=1)
def _linear(prototypes: Prototypes, shrinkage: float) -> LinearClassifier:
    """The recognizer and its leave-one-out answers ask for the same one; a base is known by its identity."""
    return LinearClassifier(prototypes, shrinkage=shrinkage)


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
    image, words = _known(similarities.image), _text_scores(similarities, fusion.name_weight)
    text = None if np.isnan(words).all() else _known(words)
    scores = similarities, image, text, ranks(image), None if text is None else ranks(text)
    return _ranked(hashes, *scores, ids, histories, fusion=fusion, tau=fusion.temperature or temperature)


def fuse_recorded(
    results: Sequence[FastResult], ids: Sequence[str], histories: Sequence[History], *, fusion: Fusion, recorded: Fusion, temperature: float
) -> list[FastResult]:
    """The same evidence under other settings, to the same bits as if the images were encoded again.

    Args:
        recorded: the settings that made the results. `name_weight` cannot change and `top_k` cannot grow, because the record holds the
            shortlists only.

    Raises:
        ConfigError: for such a change. StoreError: for a record that lacks ranks, or has a class without description on a shortlist.
    """
    if (fusion.classifier, fusion.shrinkage) != (recorded.classifier, recorded.shrinkage):
        raise ConfigError(
            f"fusion.classifier={fusion.classifier} with fusion.shrinkage={fusion.shrinkage} scores images anew: write what was recorded, "
            f"fusion.classifier={recorded.classifier} fusion.shrinkage={recorded.shrinkage}, or run again"
        )
    if fusion.name_weight != recorded.name_weight:
        raise ConfigError(
            f"fusion.name_weight={fusion.name_weight} ranks all classes anew, and the record holds shortlists only: run again"
        )
    if fusion.top_k > recorded.top_k:
        raise ConfigError(f"fusion.top_k={fusion.top_k}: the record holds the first {recorded.top_k} of each kind only: run again")
    place = {category: i for i, category in enumerate(ids)}
    shape = (len(results), len(ids))
    image, text, name = (np.zeros(shape, np.float32) for _ in range(3))
    image_ranks, text_ranks = np.full(shape, len(ids) + 1), np.full(shape, len(ids) + 1)
    listed = [(b, place[c.category], c) for b, result in enumerate(results) for c in result.candidates]
    has_words = any(c.text_rank is not None for _, _, c in listed)
    for b, i, c in listed:
        if c.image_rank is None or (c.text_rank is None and (has_words or c.text_score is not None)):
            raise StoreError("the record holds no full ranks (an older version wrote it): run again, or keep the fusion as it was")
        image[b, i], text[b, i], name[b, i] = (np.nan if v is None else v for v in (c.image_score, c.text_score, c.name_score))
        image_ranks[b, i], text_ranks[b, i] = c.image_rank, c.text_rank or text_ranks[b, i]
    named = any(c.name_score is not None for _, _, c in listed)
    similarities = Similarities(image, text, name if named else None)
    mixed = _text_scores(similarities, fusion.name_weight) if has_words else None
    if np.isnan(image).any() or (mixed is not None and np.isnan(mixed).any()):
        raise StoreError("a shortlisted class has no description or no image: it stood at the mean of all classes, which is not recorded")
    scores = similarities, image, mixed, image_ranks, text_ranks if has_words else None
    hashes = [result.sha256 for result in results]
    return _ranked(hashes, *scores, ids, histories, fusion=fusion, tau=fusion.temperature or temperature)


def _ranked(
    hashes: Sequence[str],
    similarities: Similarities,
    image: np.ndarray,
    text: np.ndarray | None,
    image_ranks: np.ndarray,
    text_ranks: np.ndarray | None,
    ids: Sequence[str],
    histories: Sequence[History],
    *,
    fusion: Fusion,
    tau: float,
) -> list[FastResult]:
    """From scores and ranks, (B, C) each, to results. The text ones are None where no class has words."""
    shortlist, rrf = image_ranks <= fusion.top_k, 1 / (RRF_OFFSET + image_ranks)
    if text_ranks is not None:
        shortlist, rrf = shortlist | (text_ranks <= fusion.top_k), rrf + 1 / (RRF_OFFSET + text_ranks)
    probabilities = softmax(np.where(shortlist, image / tau, -np.inf))
    if text is not None:
        by_text = softmax(np.where(shortlist, text / tau, -np.inf))
        probabilities = fusion.image_weight * probabilities + (1 - fusion.image_weight) * by_text
    # Equal probabilities fall to the better reciprocal rank, then to the class order: never to chance.
    order = np.lexsort((-rrf, -probabilities), axis=1)
    sizes = shortlist.sum(axis=1)
    chosen = order[:, : sizes.max(initial=0)]

    def column(table: np.ndarray | None) -> list[list[Any]]:
        """Plain numbers, None where nothing is known. Reading numpy scalars one by one would be slow."""
        if table is None:
            return [[None] * chosen.shape[1]] * len(hashes)
        rows = np.take_along_axis(table, chosen, axis=1).tolist()
        if table.dtype.kind != "f" or not np.isnan(table).any():
            return rows
        return [[None if value != value else value for value in row] for row in rows]

    columns = (
        [[ids[c] for c in row] for row in chosen.tolist()],
        column(probabilities.astype(np.float64)),
        column(similarities.image),
        column(similarities.text),
        column(similarities.name),
        column(None),  # the joint score, which `joint.rescore` fills in
        column(image_ranks),
        column(text_ranks),
    )
    return [
        ranked_result(sha256, tuple(map(Candidate, *(rows[b][:size] for rows in columns))), histories[first], fusion.rrf_weight)
        for b, (sha256, size, first) in enumerate(zip(hashes, sizes.tolist(), chosen[:, 0].tolist() if len(chosen) else [], strict=True))
    ]


def ranked_result(sha256: str, candidates: tuple[Candidate, ...], history: History, rrf_weight: float) -> FastResult:
    """The evidence that ranked candidates give the trigger."""
    p = np.array([candidate.probability for candidate in candidates])
    places = [rank for rank in (candidates[0].image_rank, candidates[0].text_rank) if rank is not None]
    return FastResult(
        sha256=sha256,
        candidates=candidates,
        confidence=float(p[0] + rrf_weight * sum(1 / (RRF_OFFSET + rank) for rank in places)),
        margin=float(p[0] - p[1]) if len(p) > 1 else float(p[0]),
        entropy=entropy(p),
        agreement=places == [1, 1],
        history=history,
    )


def ranks(scores: np.ndarray) -> np.ndarray:
    """(B, C) ranks from 1, best first; ties in class order."""
    order = np.argsort(-scores, axis=1, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.arange(1, scores.shape[1] + 1)[None, :], axis=1)
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis; -inf gets no share."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def entropy(probabilities: np.ndarray) -> float:
    """Shannon entropy in nats."""
    p = probabilities[probabilities > 0]
    return max(0.0, float(-(p * np.log(p)).sum()))


def _text_scores(similarities: Similarities, name_weight: float) -> np.ndarray:
    if similarities.name is None or name_weight == 0:
        return similarities.text
    mixed = (1 - name_weight) * similarities.text + name_weight * similarities.name
    # A class whose description failed has its name score alone.
    return np.where(np.isnan(similarities.text), similarities.name, mixed)


def _known(scores: np.ndarray) -> np.ndarray:
    """A class without this kind of prototype gets the mean of its row, which neither lifts nor sinks it."""
    missing = np.isnan(scores)
    if not missing.any():
        return scores
    if missing.all():
        return np.zeros_like(scores)
    filler = np.nanmean(np.where(missing.all(axis=1, keepdims=True), 0.0, scores), axis=1, keepdims=True)
    return np.where(missing, filler, scores)
