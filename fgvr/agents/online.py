"""Learning while running (docs/method.md, section 5): opt-in, journalled, reversible. The base itself is never touched.

`statistics`: a confident answer of System 2 judges System 1, and the class that System 1 named is counted once more as right or wrong. A
fast answer is not counted, because System 1 would only confirm itself. `prototypes`: an answer of good quality moves the class's image
prototype a small step towards the image. Updates take effect after their batch, in the order of the images.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fgvr.agents.fusion import Fusion, fuse
from fgvr.agents.trigger import lower_bound
from fgvr.knowledge.prototypes import Prototypes, Similarities, unit
from fgvr.knowledge.statistics import Statistics
from fgvr.protocols import Encoder
from fgvr.types import FastResult, History, Picture, Prediction

UpdateKind = Literal["statistics", "prototypes"]
KINDS: tuple[UpdateKind, ...] = ("statistics", "prototypes")
CONFIDENT = 0.8  # least confidence of a System 2 answer that judges System 1
GOOD, MOST, RATE = 0.7, 0.1, 0.04  # quality gate, largest step, step per quality: the precursor's constants


@dataclass(frozen=True, slots=True)
class OnlineUpdate:
    """One thing learned from one image, as the journal stores it."""

    image: str  # as predictions.jsonl calls it
    sha256: str  # of its content
    kind: UpdateKind  # statistics or prototypes
    category: str  # counted, or moved
    right: bool = True  # statistics: whether System 1 was
    step: float = 0.0  # prototypes: share of the picture's vector
    vector: Sequence[float] = ()  # prototypes: of the picture


class OnlineState:
    """A base's prototypes and statistics with the updates applied. The same updates give the same bits."""

    def __init__(self, prototypes: Prototypes, statistics: Statistics) -> None:
        self._prototypes = prototypes
        self._places = {category: i for i, category in enumerate(prototypes.ids)}
        self.image = prototypes.image.copy()  # (C, d)
        self.predicted, self.correct = statistics.predicted.copy(), statistics.correct.copy()  # (C,)

    def apply(self, updates: Iterable[OnlineUpdate]) -> None:
        for update in updates:
            place = self._places[update.category]
            if update.kind == "statistics":
                self.predicted[place] += 1
                self.correct[place] += update.right
            else:
                moved = (1 - update.step) * self.image[place] + update.step * np.asarray(update.vector, np.float32)
                self.image[place] = unit(moved[None])[0]

    def histories(self) -> tuple[History, ...]:
        total = int(self.predicted.sum())
        return tuple(History(int(s), int(c), total) for s, c in zip(self.predicted, self.correct, strict=True))

    def compare(self, queries: np.ndarray) -> Similarities:
        """Cosines of unit queries (B, d) with the present prototypes."""
        base = self._prototypes.compare(queries)
        image = queries @ self.image.T
        return Similarities(np.where(np.isnan(base.image), np.nan, image), base.text, base.name)


class OnlineRetrieval:
    """A `FastThinker` that learns from the answers to its batches. `learn` must follow the call that it gets the answers of."""

    def __init__(self, encoder: Encoder, prototypes: Prototypes, statistics: Statistics, *, fusion: Fusion, kind: UpdateKind) -> None:
        self._encoder, self._prototypes, self._fusion = encoder, prototypes, fusion
        self.kind: UpdateKind = kind
        self.journal: Callable[[Sequence[OnlineUpdate]], object] = lambda updates: None  # hears of updates before they take effect
        self.state = OnlineState(prototypes, statistics)
        self._vectors: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, pictures: Sequence[Picture]) -> list[FastResult]:
        queries = self._encoder.encode(pictures)
        hashes = [picture.sha256 for picture in pictures]
        with self._lock:
            self._vectors = dict(zip(hashes, queries, strict=True))
            similarities, histories = self.state.compare(queries), self.state.histories()
        return fuse(hashes, similarities, self._prototypes.ids, histories, fusion=self._fusion, temperature=self._prototypes.temperature)

    def learn(self, predictions: Sequence[Prediction]) -> None:
        """Apply the updates that the answers to the last batch teach."""
        with self._lock:
            updates = [update for p in predictions if (update := self._update(p)) is not None]
            if updates:
                self.journal(updates)
                self.state.apply(updates)

    def _update(self, p: Prediction) -> OnlineUpdate | None:
        if self.kind == "statistics":
            if p.by == "fast" or p.confidence < CONFIDENT:
                return None
            named = p.fast.top.category
            return OnlineUpdate(p.image, p.sha256, "statistics", named, right=named == p.category)
        quality = quality_of(p)
        if quality < GOOD:
            return None
        vector = tuple(map(float, self._vectors[p.sha256]))
        return OnlineUpdate(p.image, p.sha256, "prototypes", p.category, step=min(MOST, RATE * quality), vector=vector)


def quality_of(p: Prediction) -> float:
    """How far an answer may teach a prototype, in [0, 1]: from confidence, class history, agreement, and the rank of the answer."""
    place = next((i for i, c in enumerate(p.fast.candidates) if c.category == p.category), len(p.fast.candidates))
    return (
        0.30 * min(1.0, p.confidence / 0.8)
        + 0.25 * min(1.0, lower_bound(p.fast, eta=1.0, alpha=0.5) / 0.7)
        + 0.20 * (1.0 if p.fast.top.category == p.category else 0.3)
        + 0.15 * min(1.0, p.fast.top.probability / 0.7)
        + 0.10 * max(0.0, 1 - place / 5)
    )
