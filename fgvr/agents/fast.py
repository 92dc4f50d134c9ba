"""System 1: recognition by retrieval. It needs one encoder batch and two matrix products, and no MLLM."""

from __future__ import annotations

from collections.abc import Sequence

from fgvr.agents.fusion import Fusion, fuse
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.statistics import Statistics
from fgvr.protocols import Encoder
from fgvr.types import FastResult, Picture


class Retrieval:
    """A `FastThinker` over a knowledge base's prototypes."""

    def __init__(self, encoder: Encoder, prototypes: Prototypes, statistics: Statistics, *, fusion: Fusion) -> None:
        self._encoder = encoder
        self._prototypes = prototypes
        self._histories = statistics.histories()
        self._fusion = fusion

    def __call__(self, pictures: Sequence[Picture]) -> list[FastResult]:
        queries = self._encoder.encode(pictures)
        return fuse(
            [picture.sha256 for picture in pictures],
            self._prototypes.compare(queries),
            self._prototypes.ids,
            self._histories,
            fusion=self._fusion,
            temperature=self._prototypes.temperature,
        )
