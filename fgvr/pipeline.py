"""The recognizer: look; if unsure, think. Batch in, batch out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fgvr.agents.arbitrate import LogLinearPool
from fgvr.errors import ImageError
from fgvr.protocols import FastThinker, SlowThinker, Trigger
from fgvr.store.tally import scope
from fgvr.types import Cost, Decision, FastResult, Picture, Prediction, Sample, SlowResult

if TYPE_CHECKING:
    from fgvr.types import ImageSource

_DECODERS = 8  # threads at most; decoding lets go of the interpreter, and one core decodes 290 photographs a second


class Recognizer:
    """Fast thinking on every image, slow thinking on those the trigger doubts. Holds handles, never weights."""

    def __init__(
        self,
        *,
        look: Callable[[ImageSource], Picture],
        late: Callable[[Sequence[Sample]], Sequence[Picture | None]] = lambda samples: [None] * len(samples),
        fast: FastThinker,
        trigger: Trigger,
        slow: SlowThinker,
        arbitrate: LogLinearPool,
        names: Mapping[str, str],
        notes: Callable[[], Sequence[str]] = tuple,
        learn: Callable[[Sequence[Prediction]], None] | None = None,
        abstain: Callable[[Sequence[Prediction]], list[Prediction]] | None = None,
        record_all: bool = False,
        batch_size: int = 32,
    ) -> None:
        """Args:
        abstain: withholds answers that are too uncertain; None = all are given.
        late: pictures that need not be opened now, because what is asked of them is remembered; None for the others.
        learn: is told each batch's answers; None = nothing is learned while running.
        notes: says, once there are results, what their reader should know, such as what the trigger expects.
        record_all: let System 2 also answer images the trigger accepts, for replays; it changes no prediction.
        """
        self._look = look
        self._late = late
        self._fast = fast
        self._trigger = trigger
        self._slow = slow
        self.arbitrate = arbitrate
        self.names = names
        self._notes = notes
        self._learn = learn
        self._abstain = abstain
        self._record_all = record_all
        self.batch_size = batch_size

    @property
    def fast(self) -> FastThinker:
        return self._fast

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes())

    def __call__(self, image: ImageSource | Sample | str) -> Prediction:
        return self.batch([image])[0]

    def glance(self, pictures: Sequence[Picture]) -> list[tuple[FastResult, Decision]]:
        """System 1 and the trigger alone, one batch: what would be answered fast, and why. No MLLM is asked."""
        fast = self._fast(pictures)
        return list(zip(fast, self._trigger(fast), strict=True))

    def decide(self, results: Sequence[FastResult]) -> list[Decision]:
        """The trigger alone, on what System 1 has seen already."""
        return self._trigger(results)

    def batch(self, images: Iterable[ImageSource | Sample | str]) -> list[Prediction]:
        """Predictions in input order; an unreadable image raises ImageError."""
        samples = [as_sample(image, i) for i, image in enumerate(images)]
        return [p for batch in chunks(samples, self.batch_size) for p in self._think(batch, [self._look(s.image) for s in batch])]

    def stream(self, samples: Sequence[Sample], *, done: int = 0, unreadable: list[ImageError] | None = None) -> Iterator[list[Prediction]]:
        """Predictions batch by batch, the next batch decoded while the models work on this one; no more than two are held.

        Args:
            done: batches to skip, already answered by an earlier run; borders depend on positions alone.
            unreadable: collects images that cannot be decoded; without it the first one raises.
        """
        batches = islice(chunks(samples, self.batch_size), done, None)
        decoder = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1), thread_name_prefix="fgvr-decode")
        try:
            ahead = self._submit(decoder, next(batches, []))
            while ahead:
                began = time.perf_counter()
                opened = [(sample, picture()) for sample, picture in ahead]
                waited = time.perf_counter() - began
                ahead = self._submit(decoder, next(batches, []))
                for error in (picture for _, picture in opened if isinstance(picture, ImageError)):
                    if unreadable is None:
                        raise error
                    unreadable.append(error)
                seen = [(sample, picture) for sample, picture in opened if isinstance(picture, Picture)]
                answers = self._think([sample for sample, _ in seen], [picture for _, picture in seen])
                yield [replace(p, cost=replace(p.cost, decode_wait=waited / len(answers))) for p in answers]
        finally:
            decoder.shutdown(cancel_futures=True)

    def _submit(self, decoder: ThreadPoolExecutor, batch: Sequence[Sample]) -> list[tuple[Sample, Callable[[], Picture | ImageError]]]:
        """Begin to open a batch; calling what stands beside a sample waits for its picture."""
        late = self._late(batch)
        return [(s, decoder.submit(self._open, s).result if p is None else partial(_same, p)) for s, p in zip(batch, late, strict=True)]

    def _open(self, sample: Sample) -> Picture | ImageError:
        try:
            return self._look(sample.image)
        except ImageError as error:
            return error

    def _think(self, samples: Sequence[Sample], pictures: Sequence[Picture]) -> list[Prediction]:
        """The method: look at all, decide, think about the doubtful ones, settle."""
        if not samples:
            return []
        started = time.perf_counter()
        with scope() as work:
            fast = self._fast(pictures)
            decisions = self._trigger(fast)
            slow = self._think_slowly(pictures, fast, decisions)
            seconds = (time.perf_counter() - started) / len(samples)
            settled = [
                self._settle(sample, result, decision, answer, replace(work[result.sha256], seconds=seconds))
                for sample, result, decision, answer in zip(samples, fast, decisions, slow, strict=True)
            ]
        if self._learn is not None:
            self._learn(settled)
        return settled if self._abstain is None else self._abstain(settled)

    def _think_slowly(
        self, pictures: Sequence[Picture], fast: Sequence[FastResult], decisions: Sequence[Decision]
    ) -> list[SlowResult | None]:
        doubtful = [i for i, decision in enumerate(decisions) if decision.escalate or self._record_all]
        answers: list[SlowResult | None] = [None] * len(fast)
        if doubtful:
            for i, answer in zip(doubtful, self._slow([pictures[i] for i in doubtful], [fast[i] for i in doubtful]), strict=True):
                answers[i] = answer
        return answers

    def _settle(self, sample: Sample, fast: FastResult, decision: Decision, slow: SlowResult | None, cost: Cost) -> Prediction:
        category, confidence, by = settle(fast, decision, slow, self.arbitrate)
        return Prediction(
            image=sample.key,
            sha256=fast.sha256,
            label=sample.label,
            category=category,
            name=self.names[category],
            confidence=confidence,
            by=by,
            fast=fast,
            decision=decision,
            slow=slow,
            cost=cost,
            names=self.names,
        )


def settle(
    fast: FastResult, decision: Decision, slow: SlowResult | None, arbitrate: LogLinearPool
) -> tuple[str, float, Literal["fast", "slow"]]:
    """(class id, confidence, who answered). An unreadable slow answer leaves System 1's, marked as fast and counted as unreadable."""
    if decision.escalate and slow is not None and slow.category is not None:
        category, confidence = arbitrate(fast, slow)
        return category, confidence, "slow"
    return fast.top.category, fast.top.probability, "fast"


def redecide(prediction: Prediction, trigger: Trigger, arbitrate: LogLinearPool, names: Mapping[str, str]) -> Prediction:
    """The same evidence under another trigger: no model is asked."""
    (decision,) = trigger([prediction.fast])
    category, confidence, by = settle(prediction.fast, decision, prediction.slow, arbitrate)
    return replace(prediction, category=category, name=names[category], confidence=confidence, by=by, decision=decision, abstention=None)


def _same(picture: Picture) -> Picture:
    return picture


def as_sample(image: ImageSource | Sample | str, index: int = 0) -> Sample:
    """A Sample from whatever a notebook holds: a path, a PIL image, a numpy array."""
    if isinstance(image, Sample):
        return image
    if isinstance(image, str | Path):
        return Sample(Path(image), key=str(image))
    return Sample(image, key=f"image {index}")


def chunks(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, size)):
        yield batch
