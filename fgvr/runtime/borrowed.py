"""What a lease hands out: a face of the one copy, usable while leased and never a way to keep the model.

The face runs each call in batches of the working size, in turns (`turns`), beside no construction, and counts the work.
An MLLM's prompts go through sorted by length and within the tokens its working memory was planned for; answers keep the order asked in.
The working size is the spec's batch size until memory runs out; then a batch is tried again with all idle models gone, then halved.
It holds the pool's entry, not the model: a face kept after its lease raises, and costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fgvr.errors import FgvrError
from fgvr.runtime.batches import Measured, longest_first, take
from fgvr.runtime.counters import Counters, Work
from fgvr.runtime.leaks import clear_frames
from fgvr.runtime.ledger import Entry
from fgvr.runtime.locks import CONSTRUCT
from fgvr.runtime.recovery import Rescue
from fgvr.runtime.turns import Turns
from fgvr.types import Choice, Reply, Scores

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike
    from fgvr.runtime.conversation import Answer, Conversation, Watch

    Images = Sequence[ImageLike | Sequence[ImageLike]]

T = TypeVar("T")


class Borrowed:
    """Common to all roles."""

    def __init__(self, entry: Entry, counters: Counters, rescue: Rescue, turns: Turns) -> None:
        self._entry, self._counters, self._rescue, self._turns = entry, counters, rescue, turns

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

    def _each(self, name: str, count: int, call: Callable[[Any, Sequence[int]], Sequence[T]], lengths: Sequence[int] = ()) -> list[T]:
        """`count` items in batches of the working size; one answer per item, in order. Raises OutOfBudget when not even one item fits.

        `lengths`: tokens of each item, where they are known: then the longest go first, and a batch holds no more than is planned for.
        """
        order = longest_first(lengths) if lengths else range(count)
        answers: dict[int, T] = {}
        start, tried = 0, False
        while start < count:
            most = self._entry.batch(name)
            stop = take(lengths, order, start, most, self._room) if lengths else min(count, start + most)
            batch = order[start:stop]
            lack = self._run(batch, call, answers)
            if lack is None:
                start = stop
            elif not tried:
                tried = True
                self._rescue.make_room(self._entry, name, len(batch), lack)
            else:
                self._rescue.halve(self._entry, name, len(batch), lack)
        return [answers[i] for i in range(count)]

    @property
    def _room(self) -> int:
        """Tokens a batch may have, padding included: what the plan reckons with, whatever the single prompt is."""
        return self._entry.batch_size * self._model.tokens_per_item

    def _run(self, batch: Sequence[int], call: Callable[[Any, Sequence[int]], Sequence[T]], answers: dict[int, T]) -> str | None:
        """One batch; notes its answers, or returns the words of the error when memory ran out.

        Own turn first, then the construct lock: the other order can wait in a circle with a loading thread.
        """
        outer = sys.exception()
        with self._turn():
            try:
                answers.update(zip(batch, call(self._model, batch), strict=True))
                return None
            except BaseException as error:
                exhausted = isinstance(error, Exception) and self._rescue.is_oom(error)
                text = f"{type(error).__name__}: {error}"
                # Whoever keeps this exception (a notebook does) keeps the model's frames, hence its memory.
                if not exhausted:
                    self._entry.frames.keep(error, outer=outer)  # for a debugger, until the model has to go
                    raise
                clear_frames(error, outer=outer)
        return text

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """What computes in another process needs none, and may take long enough to keep everybody here waiting."""
        if getattr(self._entry.loader, "elsewhere", False):
            yield
            return
        with self._turns.turn(self._entry), CONSTRUCT.read():
            yield

    def __repr__(self) -> str:
        return f"<{self._entry.key} of {self._entry.spec.source}, {self._entry.state}>"


class BorrowedEncoder(Borrowed):
    """protocols.Encoder"""

    @property
    def logit_scale(self) -> float:
        return float(self._model.logit_scale)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        self._counters.add(Work(encoder_forwards=len(images)))
        return self._stack(self._each("encode", len(images), lambda m, b: m.encode([images[i] for i in b])))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        self._counters.add(Work(text_forwards=len(texts)))
        return self._stack(self._each("encode_text", len(texts), lambda m, b: m.encode_text([texts[i] for i in b])))

    def _stack(self, rows: list[np.ndarray]) -> np.ndarray:
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


class BorrowedMLLM(Borrowed):
    """protocols.MLLM"""

    def generate(self, images: Images, prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128) -> list[Reply]:
        _same_length(images=images, prompts=prompts)

        def answer(model: Any, b: Sequence[int]) -> list[Reply]:
            return model.generate([images[i] for i in b], [prompts[i] for i in b], system=system, max_new_tokens=max_new_tokens)

        replies = self._each("generate", len(prompts), answer, self._lengths(images, prompts, system))
        self._count(replies, sum(r.new_tokens for r in replies))
        return replies

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        _same_length(images=images, prompts=prompts, continuations=continuations)

        def answer(model: Any, b: Sequence[int]) -> list[Scores]:
            return model.score([images[i] for i in b], [prompts[i] for i in b], [continuations[i] for i in b], system=system)

        scores = self._each("score", len(prompts), answer, self._lengths(images, prompts, system))
        self._count(scores, 0)
        return scores

    def choose(
        self, images: Images, prompts: Sequence[str], options: Sequence[Sequence[str]], *, marker: str, system: str, **settings: int
    ) -> list[tuple[Choice, ...]]:
        """protocols.Chooser, for models behind an engine."""
        _same_length(images=images, prompts=prompts, options=options)

        def answer(model: Any, b: Sequence[int]) -> list[tuple[Choice, ...]]:
            some = ([values[i] for i in b] for values in (images, prompts, options))
            return model.choose(*some, marker=marker, system=system, **settings)

        found = self._each("generate", len(prompts), answer)
        replies = [choice.reply for choices in found for choice in choices]
        self._count(replies, sum(reply.new_tokens for reply in replies))
        return found

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        """runtime.conversation.Conversing, where the loader says that its models can. Text of a batch tried again is told again."""

        def answer(model: Any, b: Sequence[int]) -> list[Answer]:
            return model.converse([asks[i] for i in b], lambda i, text, tokens: watch(b[i], text, tokens))

        answers = self._each("generate", len(asks), answer)
        self._count(answers, sum(a.new_tokens for a in answers))
        return answers

    def _lengths(self, images: Images, prompts: Sequence[str], system: str) -> Sequence[int]:
        model = self._model
        return model.lengths(images, prompts, system) if isinstance(model, Measured) else ()

    def _count(self, answers: Sequence[Reply | Scores | Answer], new_tokens: int) -> None:
        self._counters.add(Work(mllm_calls=len(answers), prompt_tokens=sum(a.prompt_tokens for a in answers), new_tokens=new_tokens))


class BorrowedJoint(Borrowed):
    """protocols.JointEncoder"""

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        _same_length(images=images, texts=texts)
        self._counters.add(Work(joint_forwards=len(texts)))
        return np.array(self._each("match", len(texts), lambda m, b: m.match([images[i] for i in b], [texts[i] for i in b])), np.float32)


FACES: dict[str, type[Borrowed]] = {"encoder": BorrowedEncoder, "mllm": BorrowedMLLM, "joint": BorrowedJoint}


def _same_length(**columns: Sequence[Any]) -> None:
    if len({len(c) for c in columns.values()}) > 1:
        raise FgvrError("one of each is needed per item: " + ", ".join(f"{len(c)} {name}" for name, c in columns.items()))
