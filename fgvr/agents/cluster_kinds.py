"""Kinds of images without an MLLM: groups of image vectors, called "kind 1", "kind 2", until a person names them.

The number of kinds is found. k-means groups the images in 2, 3, ... groups; each grouping is a mixture of spherical Gaussians with one
variance, and the Bayesian information criterion (Schwarz 1978; for k-means Pelleg and Moore 2000) chooses among them.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from fgvr.agents.discover import Discovered, Kind
from fgvr.knowledge.prototypes import unit
from fgvr.utils.text import normalise_name

_DIRECTIONS = 64
"""Principal components in which groups are sought."""
_MOST = 500  # kinds that are looked for
_STEP = 1.1  # between the numbers of groups that are tried, beyond ten


def cluster_kinds(vectors: np.ndarray, *, scale: float, count: int | None = None, superclass: str | None = None) -> Discovered:
    """Args:
    vectors: (N, d) of the images, unit rows.
    scale: the encoder's inverse temperature, for certainties.
    count: how many kinds there are, where that is known; None: found.
    """
    centred = unit(vectors - vectors.mean(axis=0)) if len(vectors) > 2 else vectors
    groups = _groups(_reduced(centred), count)
    certainty = _certainty(centred, groups, scale)
    largest_first = np.argsort(-np.bincount(groups), kind="stable")
    kinds = []
    for place, group in enumerate(largest_first, 1):
        own = np.flatnonzero(groups == group)
        own = own[np.argsort(-certainty[own], kind="stable")]
        sure = tuple(round(float(certainty[n]), 6) for n in own)
        kinds.append(Kind(f"kind {place}", (), "", tuple(own.tolist()), sure, len(own)))
    found = "as many as discover.kinds says" if count else "as many as the Bayesian information criterion chooses"
    notes = (f"no MLLM: {len(kinds)} groups of image vectors, {found}; a person names them",)
    return Discovered(superclass or "object", (), tuple(kinds), len(kinds), 0.0, notes)


def from_json(plain: Mapping[str, Any]) -> Discovered:
    """What `dataclasses.asdict` and JSON have made of it."""
    as_now = {"complexity_penalty" if name == "price" else name: value for name, value in plain.items()}  # 0.1 called it price
    return TypeAdapter(Discovered).validate_python(as_now)


def name_kinds(found: Discovered, names: Mapping[str, str]) -> Discovered:
    """The kinds with a person's names; kinds of one name, in any spelling, become one. Args: names: by the kind's present name."""
    named: dict[str, list[Kind]] = defaultdict(list)
    for kind in found.kinds:
        named[normalise_name(names.get(kind.name, kind.name))].append(replace(kind, name=names.get(kind.name, kind.name)))
    return replace(found, kinds=tuple(sorted(map(_joined, named.values()), key=lambda kind: -len(kind.pictures))))


def _joined(kinds: list[Kind]) -> Kind:
    images = sorted((-sure, picture) for kind in kinds for picture, sure in zip(kind.pictures, kind.certainty, strict=True))
    pictures, certainty = tuple(picture for _, picture in images), tuple(-sure for sure, _ in images)
    return replace(kinds[0], pictures=pictures, certainty=certainty, votes=sum(kind.votes for kind in kinds))


def _groups(points: np.ndarray, count: int | None) -> np.ndarray:
    """(N,) the group of each image."""
    distinct = len(np.unique(points.round(5), axis=0))  # copies are one group
    if count is not None:
        return _k_means(points, min(count, distinct))
    tried = [_k_means(points, n) for n in _numbers(min(_MOST, distinct, max(1, len(points) // 2)))]
    return max(tried, key=lambda groups: _information(points, groups))


def _numbers(most: int) -> list[int]:
    """1, 2, ... 10, then in steps of a tenth."""
    numbers, n = list(range(1, min(10, most) + 1)), 10.0
    while (n := n * _STEP) <= most:
        numbers.append(round(n))
    return numbers


def _information(points: np.ndarray, groups: np.ndarray) -> float:
    """The Bayesian information criterion in nats, larger is better: log-likelihood less half the log of N per parameter."""
    n, d = points.shape
    sizes = np.bincount(groups)
    means = np.stack([points[groups == g].mean(axis=0) for g in range(len(sizes))])
    apart = float(((points - means[groups]) ** 2).sum())
    fit = -0.5 * n * d * np.log(max(apart, 1e-12) / (n * d)) + float((sizes * np.log(sizes / n)).sum())
    return fit - 0.5 * np.log(n) * len(sizes) * (d + 1)


def _reduced(vectors: np.ndarray) -> np.ndarray:
    """(N, at most 64): the directions in which the images differ most (principal components)."""
    _, axes = np.linalg.eigh(vectors.T.astype(float) @ vectors)
    return vectors @ axes[:, -min(_DIRECTIONS, max(1, len(vectors) // 2)) :]


def _k_means(points: np.ndarray, count: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    groups = KMeans(count, n_init=3, random_state=0).fit_predict(points)  # pyright: ignore[reportArgumentType]
    return np.unique(groups, return_inverse=True)[1]


def _certainty(vectors: np.ndarray, groups: np.ndarray, scale: float) -> np.ndarray:
    """(N,) share of the image's own group in a softmax over its cosines with the centres of all groups."""
    centres = unit(np.stack([vectors[groups == g].mean(axis=0) for g in range(groups.max() + 1)]))
    logits = scale * (vectors @ centres.T)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds[np.arange(len(vectors)), groups] / odds.sum(axis=1)
