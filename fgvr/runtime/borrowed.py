"""What a lease hands out: a face of the one copy, usable while leased and never a way to keep the model.

The face runs each call in batches of the spec's size, one batch at a time per copy, beside no construction, and counts the work.
It holds the pool's entry, not the model: a face kept after its lease raises, and costs nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fgvr.errors import FgvrError
from fgvr.runtime.counters import Counters, Work
from fgvr.runtime.ledger import Entry
from fgvr.runtime.locks import CONSTRUCT
from fgvr.types import Reply, Scores

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike

    Images = Sequence[ImageLike | Sequence[ImageLike]]

T = TypeVar("T")


class Borrowed:
    """Common to all roles."""

    def __init__(self, entry: Entry, counters: Counters) -> None:
        self._entry, self._counters = entry, counters

    @property
    def fingerprint(self) -> str:
        return self._entry.loader.fingerprint(self._entry.spec)

    @property
    def nbytes(self) -> int:
        return self._model.nbytes

    @property
    def _model(self) -> Any:
        model = self._entry.model
        if model is None or not self._entry.leases:
            raise FgvrError(f"{self._entry.key} is not leased any more; use a model only inside its `with pool.lease(...)`")
        return model

    def _run(self, call: Callable[[Any], T]) -> T:
        """One batch. Own lock first, then the construct lock: the other order can wait in a circle with a loading thread."""
        with self._entry.computing, CONSTRUCT.read():
            try:
                return call(self._model)
            except Exception as error:
                # Whoever keeps this exception (a notebook does) would keep the model's frames, hence its memory.
                below = error.__traceback__.tb_next if error.__traceback__ else None
                traceback.clear_frames(below)
                raise

    def _batches(self, count: int) -> Iterator[slice]:
        size = max(1, self._entry.spec.batch_size)
        return (slice(start, start + size) for start in range(0, count, size))

    def __repr__(self) -> str:
        return f"<{self._entry.key} of {self._entry.spec.source}, {self._entry.state}>"


class BorrowedEncoder(Borrowed):
    """protocols.Encoder"""

    @property
    def logit_scale(self) -> float:
        return float(self._model.logit_scale)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        self._counters.add(Work(encoder_forwards=len(images)))
        return self._stack([self._run(lambda m, b=b: m.encode(images[b])) for b in self._batches(len(images))])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        self._counters.add(Work(text_forwards=len(texts)))
        return self._stack([self._run(lambda m, b=b: m.encode_text(texts[b])) for b in self._batches(len(texts))])

    def _stack(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


class BorrowedMLLM(Borrowed):
    """protocols.MLLM"""

    def generate(self, images: Images, prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128) -> list[Reply]:
        _same_length(images=images, prompts=prompts)
        replies: list[Reply] = []
        for b in self._batches(len(prompts)):
            replies += self._run(lambda m, b=b: m.generate(images[b], prompts[b], system=system, max_new_tokens=max_new_tokens))
        self._count(replies, sum(r.new_tokens for r in replies))
        return replies

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        _same_length(images=images, prompts=prompts, continuations=continuations)
        scores: list[Scores] = []
        for b in self._batches(len(prompts)):
            scores += self._run(lambda m, b=b: m.score(images[b], prompts[b], continuations[b], system=system))
        self._count(scores, 0)
        return scores

    def _count(self, answers: Sequence[Reply | Scores], new_tokens: int) -> None:
        self._counters.add(Work(mllm_calls=len(answers), prompt_tokens=sum(a.prompt_tokens for a in answers), new_tokens=new_tokens))


class BorrowedJoint(Borrowed):
    """protocols.JointEncoder"""

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        _same_length(images=images, texts=texts)
        self._counters.add(Work(joint_forwards=len(texts)))
        parts = [self._run(lambda m, b=b: m.match(images[b], texts[b])) for b in self._batches(len(texts))]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


FACES: dict[str, type[Borrowed]] = {"encoder": BorrowedEncoder, "mllm": BorrowedMLLM, "joint": BorrowedJoint}


def _same_length(**columns: Sequence[Any]) -> None:
    if len({len(c) for c in columns.values()}) > 1:
        raise FgvrError("one of each is needed per item: " + ", ".join(f"{len(c)} {name}" for name, c in columns.items()))
