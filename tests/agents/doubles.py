"""Small stand-ins at the protocol seams: they answer from tables and remember what they were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fgvr.knowledge.classes import ClassRecord, Description
from fgvr.types import Candidate, FastResult, History, Picture, Reply, Scores


def picture(name: str) -> Picture:
    return Picture(Image.new("RGB", (4, 4)), name)


def fast_result(
    probabilities: Sequence[float], *, sha256: str = "x", ids: Sequence[str] | None = None, history: History = History(8, 6, 80)
) -> FastResult:
    ids = ids or [f"c{i}" for i in range(len(probabilities))]
    p = np.array(probabilities, float)
    return FastResult(
        sha256=sha256,
        candidates=tuple(Candidate(c, float(v), 0.5, 0.5) for c, v in zip(ids, p, strict=True)),
        confidence=float(p[0]),
        margin=float(p[0] - p[1]) if len(p) > 1 else float(p[0]),
        entropy=float(-(p[p > 0] * np.log(p[p > 0])).sum()),
        agreement=True,
        history=history,
    )


def class_record(id: str, description: str = "plain", folds: tuple[str, str] = ("fold zero", "fold one")) -> ClassRecord:
    status = "described" if description else "failed"
    return ClassRecord(id, f"name {id}", "bird", (), Description(description, status), (Description(folds[0]), Description(folds[1])), 4)


class TableMLLM:
    """Scores a continuation by a function of (picture hash, words); writes what it is told to write."""

    fingerprint = "table"

    def __init__(self, nats: Callable[[str, str], float] = lambda sha256, words: 0.0, reply: str = "") -> None:
        self._nats, self._reply = nats, reply
        self.prompts: list[str] = []
        self.images: list[object] = []
        self.systems: set[str] = set()

    def generate(self, images, prompts, *, system="", max_new_tokens=128):
        self.prompts += prompts
        self.images += images
        self.systems.add(system)
        return [Reply(self._reply, 10, 5) for _ in prompts]

    def score(self, images, prompts, continuations, *, system=""):
        self.prompts += prompts
        self.systems.add(system)
        return [
            Scores(tuple(self._nats(image.sha256, words) for words in options), (1,) * len(options), 10)
            for image, options in zip(images, continuations, strict=True)
        ]
