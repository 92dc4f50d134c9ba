"""System 1: recognition by retrieval, or by a linear classifier. One encoder batch, matrix products, no MLLM."""

from collections.abc import Sequence

from fgvr.agents.fusion import Fusion, classifier_of, fuse
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.statistics import Statistics
from fgvr.protocols import Encoder
from fgvr.types import FastResult, Picture


class Retrieval:
    """A `FastThinker` over a knowledge base's prototypes."""

    def __init__(self, encoder: Encoder, prototypes: Prototypes, statistics: Statistics, *, fusion: Fusion) -> None:
        self._encoder = encoder
        self._ids, self._temperature = prototypes.ids, prototypes.temperature
        self._classifier = classifier_of(prototypes, fusion)
        self._histories = statistics.histories()
        self._fusion = fusion

    def __call__(self, pictures: Sequence[Picture]) -> list[FastResult]:
        queries = self._encoder.encode(pictures)
        return fuse(
            [picture.sha256 for picture in pictures],
            self._classifier.compare(queries),
            self._ids,
            self._histories,
            fusion=self._fusion,
            temperature=self._temperature,
        )
