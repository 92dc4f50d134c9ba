"""Models as their users see them: the methods of one protocol, computed by the pool's one copy.

`pool.lease(...)` hands these out for the length of a `with` block; `pool.leased(spec)` makes one that takes a lease for each call.
Neither holds the model: a leased model kept after its lease raises, and costs nothing. Signatures stand in `protocols` alone.
"""

from __future__ import annotations

import functools
import inspect
import reprlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import numpy as np

from fgvr.errors import FgvrError
from fgvr.protocols import MLLM, Chooser, Encoder, JointEncoder, Measured
from fgvr.runtime.conversation import Answer, Conversation, Watch
from fgvr.runtime.devices.base import Device
from fgvr.runtime.execution_slots import ExecutionSlots
from fgvr.runtime.gc_tools import clear_frames
from fgvr.runtime.ledger import Entry
from fgvr.runtime.loaders.base import Loader
from fgvr.runtime.locks import CONSTRUCT
from fgvr.runtime.recovery import Recovery
from fgvr.types import ModelSpec, Reply, Scores
from fgvr.utils.batches import longest_first, take

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Work:
    """What the models of one pool have done since it was made. What the cache answers never comes here."""

    encoder_forwards: int = 0  # images through the image tower
    text_forwards: int = 0  # texts through the text tower
    joint_forwards: int = 0  # image-text pairs
    mllm_calls: int = 0  # prompts, answered or scored
    prompt_tokens: int = 0
    new_tokens: int = 0  # generated; scoring generates none

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


class Counters:
    """Thread-safe running total."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Work()

    def add(self, work: Work) -> None:
        with self._lock:
            self._total = self._total + work

    def snapshot(self) -> Work:
        """The total so far."""
        with self._lock:
            return self._total


class Execution:
    """Runs calls on one resident model, in batches of the working size.

    Each batch waits for a slot (`execution_slots`) and for the construction of models to end. The working size is the spec's batch size
    until memory runs out; then a batch is tried again with all idle models gone, then halved.
    """

    def __init__(self, entry: Entry, counters: Counters, recovery: Recovery, slots: ExecutionSlots, device: Device) -> None:
        self._entry, self.counters, self._recovery, self._slots, self._device = entry, counters, recovery, slots, device

    @property
    def model(self) -> Any:
        """The resident model itself. Raises FgvrError outside a lease."""
        model = self._entry.model
        if model is None or not self._entry.leases:
            raise FgvrError(f"{self._entry.key} is not leased any more; use a model only inside its `with pool.lease(...)`")
        return model

    def lengths(self, images: Sequence[Any], prompts: Sequence[str], system: str) -> Sequence[int]:
        """Tokens of each prompt, where the model can tell; else empty."""
        model = self.model
        return model.lengths(images, prompts, system) if isinstance(model, Measured) else ()

    def run(
        self,
        method: str,
        columns: Sequence[Sequence[Any]],
        settings: Callable[[Sequence[int]], Mapping[str, Any]],
        *,
        sized: str,
        lengths: Sequence[int] = (),
    ) -> list[Any]:
        """One answer per item, in order: item i is the i-th entry of each column. Raises OutOfBudget when not even one item fits.

        Args:
            settings: further arguments of a batch, from the positions of its items.
            sized: the name under which the working size is remembered.
            lengths: tokens of each item, where they are known. The longest go first, and a batch holds no more than the plan reckons with.
        """
        count = len(columns[0])
        order = longest_first(lengths) if lengths else range(count)
        answers: dict[int, Any] = {}
        start, evicted = 0, False
        while start < count:
            most = self._entry.batch(sized)
            room = self._entry.batch_size * self.model.tokens_per_item if lengths else 0
            stop = take(lengths, order, start, most, room) if lengths else min(count, start + most)
            batch, lack = order[start:stop], None
            outer = sys.exception()
            with self._turn():
                try:
                    found = getattr(self.model, method)(*([column[i] for i in batch] for column in columns), **settings(batch))
                    if len(found) != len(batch):
                        said = f"{method} returned {len(found)} answers for {len(batch)} items; expected is one for each"
                        raise FgvrError(f"models.{self._entry.spec.role}.loader={self._entry.spec.loader}: {said}")
                    answers.update(zip(batch, found, strict=True))
                except BaseException as error:
                    if (settle := getattr(self.model, "settle", None)) is not None:
                        settle()
                    # Whoever keeps this exception (a notebook does) keeps the model's frames, hence its memory.
                    if not (isinstance(error, Exception) and self._recovery.is_oom(error)):
                        self._entry.frames.add(error, outer=outer)  # for a debugger, until the model has to go
                        raise
                    lack = f"{type(error).__name__}: {error}"
                    clear_frames(error, outer=outer)
            if lack is None:
                start = stop
            elif not evicted:
                evicted = True
                self._recovery.make_room(self._entry, sized, len(batch), lack)
            else:
                self._recovery.halve(self._entry, sized, len(batch), lack)
        return [answers[i] for i in range(count)]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Own turn first, then the construct lock: the other order can wait in a circle with a loading thread.

        What computes in another process needs neither, and may take long enough to keep everybody here waiting.
        """
        if self._entry.loader.elsewhere:
            yield
            return
        with self._slots.turn(self._entry), CONSTRUCT.read(), self._device.current():
            yield

    def __repr__(self) -> str:
        return f"{self._entry.key} of {self._entry.spec.source}, {self._entry.state}"


class Leased:
    """A model of the pool, without its role's methods: in a lease (`execution`), or with a lease for each call (`lend`)."""

    def __init__(
        self,
        spec: ModelSpec,
        loader: Loader,
        *,
        execution: Execution | None = None,
        lend: Callable[[ModelSpec], AbstractContextManager[Leased]] | None = None,
    ) -> None:
        self.spec, self._loader = spec, loader
        self._execution, self._lend = execution, lend

    @functools.cached_property
    def fingerprint(self) -> str:
        """From the files alone."""
        return self._loader.fingerprint(self.spec)

    @property
    def model(self) -> Any:
        """The resident model itself. Raises FgvrError outside a lease."""
        return self.execution.model

    @property
    def nbytes(self) -> int:
        return self.model.nbytes

    @property
    def execution(self) -> Execution:
        """Raises FgvrError for a model that is leased for each call."""
        if self._execution is None:
            raise FgvrError(f"{self.spec.key} is leased for each call; lease it with `with pool.lease(...)` first")
        return self._execution

    def leased(self) -> AbstractContextManager[Leased]:
        """A lease for one call; this model itself inside a lease."""
        return nullcontext(self) if self._lend is None else self._lend(self.spec)

    def __repr__(self) -> str:
        return f"<{self.spec.key} of {self.spec.source}>" if self._execution is None else f"<{self._execution!r}>"


def lent(signature: Method, work: Callable[[list[Any]], Work], *, fold: Callable[[list[Any]], Any] = list, sized: str = "") -> Method:
    """A protocol's method, computed by the leased copy. Positional arguments have one entry per item; keywords hold for all items.

    Args:
        work: what the answers cost.
        fold: a list of answers -> what the protocol returns.
        sized: the method that shares its working size; empty = its own.
    """
    name = signature.__name__
    shape = inspect.signature(signature)
    names = [parameter.name for parameter in shape.parameters.values() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD][1:]

    @functools.wraps(signature)
    def method(self: Leased, *columns: Sequence[Any], **settings: Any) -> Any:
        if len(columns) != len(names):
            bound = shape.bind(self, *columns, **settings)
            columns, settings = bound.args[1:], bound.kwargs
        if len(set(map(len, columns))) > 1:
            counts = ", ".join(f"{len(column)} {column_name}" for column_name, column in zip(names, columns, strict=True))
            raise FgvrError(f"one of each is needed per item: {counts}")
        with self.leased() as leased:
            execution = leased.execution
            lengths = execution.lengths(columns[0], columns[1], settings.get("system", "")) if name in _BY_LENGTH else ()
            answers = execution.run(name, columns, lambda _: settings, sized=sized or name, lengths=lengths)
            expected, fits = _EXPECTED.get(name, ("", lambda answer, *item: True))
            if wrong := [answer for answer, *item in zip(answers, *columns, strict=True) if not fits(answer, *item)]:
                said = f"{name} returned {reprlib.repr(wrong[0])}; expected is {expected}"
                raise FgvrError(f"models.{self.spec.role}.loader={self.spec.loader}: {said}")
            execution.counters.add(work(answers))
        return fold(answers)

    return cast(Method, method)


_UNIT = "a row of finite numbers with norm 1", lambda row, text: np.ndim(row) == 1 and abs(np.linalg.norm(row) - 1) < 0.02
_EXPECTED: dict[str, tuple[str, Callable[..., Any]]] = {
    "encode": _UNIT,
    "encode_text": _UNIT,
    "generate": ("a fgvr.types.Reply", lambda reply, *_: isinstance(reply, Reply)),
    "score": (
        "a fgvr.types.Scores with one finite log-likelihood per continuation",
        lambda s, image, prompt, texts: isinstance(s, Scores) and np.isfinite(s.log_likelihoods).sum() == len(texts),
    ),
}
"""What the protocols say of an answer, and whether it holds of one and its item: a model may be somebody's own."""
_BY_LENGTH = ("generate", "score")  # methods whose prompts are sorted by length, where a model can say it


def _rows(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _mllm_work(answers: Sequence[Reply | Answer]) -> Work:
    tokens = sum(a.prompt_tokens for a in answers), sum(a.new_tokens for a in answers)
    return Work(mllm_calls=len(answers), prompt_tokens=tokens[0], new_tokens=tokens[1])


class LeasedEncoder(Leased):
    """protocols.Encoder"""

    encode = lent(Encoder.encode, lambda rows: Work(encoder_forwards=len(rows)), fold=_rows)
    encode_text = lent(Encoder.encode_text, lambda rows: Work(text_forwards=len(rows)), fold=_rows)

    @property
    def has_text(self) -> bool:
        """As the loader says of all its models; asking loads nothing."""
        return getattr(self._loader, "has_text", True)

    @property
    def logit_scale(self) -> float:
        """From the file alone, so that asking (as `isinstance(model, Encoder)` does) loads nothing."""
        return self._loader.logit_scale(self.spec)


class LeasedMLLM(Leased):
    """protocols.MLLM, and protocols.Chooser where the model can."""

    generate = lent(MLLM.generate, _mllm_work)
    score = lent(MLLM.score, lambda found: Work(mllm_calls=len(found), prompt_tokens=sum(s.prompt_tokens for s in found)))
    choose = lent(Chooser.choose, lambda answers: _mllm_work([choice.reply for choices in answers for choice in choices]), sized="generate")

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        """runtime.conversation.Conversing, where the loader says that its models can. Text of a batch tried again is told again."""

        def of_batch(batch: Sequence[int]) -> dict[str, Watch]:
            return {"watch": lambda i, text, tokens: watch(batch[i], text, tokens)}

        with self.leased() as leased:
            answers = leased.execution.run("converse", [asks], of_batch, sized="generate")
            leased.execution.counters.add(_mllm_work(answers))
        return answers


class LeasedJoint(Leased):
    """protocols.JointEncoder"""

    match = lent(JointEncoder.match, lambda rows: Work(joint_forwards=len(rows)), fold=lambda rows: np.array(rows, np.float32))


BY_ROLE: dict[str, type[Leased]] = {"encoder": LeasedEncoder, "mllm": LeasedMLLM, "joint": LeasedJoint}
