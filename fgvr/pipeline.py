"""The recognizer: System 1 answers every image, the trigger decides, and System 2 answers the escalated images.

Without a System 2 (`slow=None`) an escalated image keeps System 1's answer: `by` is "fast" and `Prediction.unsure` is true.
"""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.agents.trigger import decide
from fgvr.data.pictures import DeferredImage
from fgvr.errors import ImageError
from fgvr.protocols import FastThinker, SlowThinker, Trigger
from fgvr.store.cost_tracking import TrackedCosts, track_costs
from fgvr.types import Cost, Decision, FastResult, Picture, Prediction, Sample, SlowResult
from fgvr.utils.batches import chunks, map_in_order
from fgvr.utils.images import ImageSource

_DECODERS = 8  # threads at most; decoding releases the interpreter, and one core decodes 290 photographs a second
GROUP = 4
"""Batches whose doubtful images may go to System 2 together. Groups begin at multiples of it, so what is asked together depends on
positions alone, whoever computes it and however often a run was interrupted."""
_MISS_RATE = 1 / 8  # initial estimate of the MLLM cache-miss rate among escalated images whose embedding is cached


@dataclass(frozen=True, slots=True)
class FastBatch:
    """A batch that System 1 has answered and the trigger has judged. It keeps the doubtful images only."""

    samples: Sequence[Sample]
    fast: Sequence[FastResult]
    decisions: Sequence[Decision]
    doubtful: Mapping[int, Picture]  # by index in the batch
    deferred: bool  # none of its images was opened
    costs: TrackedCosts
    seconds: float  # of all its images together
    decode_wait: float = 0.0


@dataclass(kw_only=True, repr=False, eq=False)
class Recognizer:
    """System 1 on every image, System 2 on those that the trigger escalates. A recognizer holds handles, never weights."""

    look: Callable[[ImageSource], Picture]  # opens an image
    # Images whose embedding is cached, so that they are opened only when System 2 asks; None for the others.
    deferred_images: Callable[[Sequence[Sample]], Sequence[Picture | None]] = lambda samples: [None] * len(samples)
    fast: FastThinker
    trigger: Trigger
    slow: SlowThinker | None  # None: there is no System 2, or it is asked later
    answer_fusion: LogLinearFusion
    names: Mapping[str, str]
    remarks: Callable[[], Sequence[str]] = tuple  # asked for once there are results: what their reader should know
    learn: Callable[[Sequence[Prediction]], None] | None = None  # gets each batch's predictions; None: nothing is learned while running
    abstain: Callable[[Sequence[Prediction]], list[Prediction]] | None = None  # withholds uncertain answers; None: all are given
    record_all: bool = False  # System 2 also answers images that the trigger accepts, for replays; this changes no prediction
    batch_size: int = 32
    at_once: int = 1  # batches that System 1 works on at a time, one per device

    def __repr__(self) -> str:
        first = ", ".join(list(self.names.values())[:3])
        trigger = getattr(self.trigger, "name", type(self.trigger).__name__)
        more = ", ..." if len(self.names) > 3 else ""
        return f"Recognizer({len(self.names)} classes: {first}{more}; trigger {trigger}; batches of {self.batch_size}; holds no weights)"

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.remarks())

    def __call__(self, image: ImageSource | Sample | str) -> Prediction:
        return self.batch([image])[0]

    def decide(self, results: Sequence[FastResult]) -> list[Decision]:
        """The trigger alone, on results of System 1."""
        return decide(self.trigger, results)

    def batch(self, images: Iterable[ImageSource | Sample | str]) -> list[Prediction]:
        """Predictions in input order; an unreadable image raises ImageError."""
        samples = [as_sample(image, i) for i, image in enumerate(images)]
        opened = ((batch, [self.look(s.image) for s in batch]) for batch in chunks(samples, self.batch_size))
        answered = map_in_order(lambda one: self._run_fast(*one), opened, self.at_once)
        return [p for one in answered for p in self._finish([one])]

    def stream(self, samples: Sequence[Sample], *, done: int = 0, unreadable: list[ImageError] | None = None) -> Iterator[list[Prediction]]:
        """Predictions in order. The next batch is decoded while the models work on this one, and no more than two are held for each device.

        Batches of one group come together where few images are doubtful or most answers are cached: System 2 is asked when a full batch
        of questions has come together, because its cost per image falls with its batch size. With `learn` each batch comes alone.

        Args:
            done: batches to skip, already answered by an earlier run; borders depend on positions alone.
            unreadable: collects images that cannot be decoded; without it the first one raises.
        """
        waiting: list[FastBatch] = []
        miss_rate = _MISS_RATE
        at_once = self.at_once if self.learn is None else 1
        with closing(self._opened(islice(chunks(samples, self.batch_size), done, None), unreadable)) as opened:
            answered = map_in_order(lambda one: self._run_fast(*one), opened, at_once)
            for number, batch in enumerate(answered, done + 1):
                waiting.append(batch)
                group_ends = number % GROUP == 0
                if group_ends or self._ready(waiting, miss_rate):
                    predictions, waiting = self._finish(waiting), []
                    if calls := [p.cost.mllm_calls > 0 for p in predictions if p.slow is not None]:
                        miss_rate = sum(calls) / len(calls)
                    miss_rate = _MISS_RATE if group_ends else miss_rate
                    yield predictions
            if waiting:
                yield self._finish(waiting)

    def _opened(
        self, batches: Iterator[list[Sample]], unreadable: list[ImageError] | None
    ) -> Generator[tuple[list[Sample], list[Picture], float]]:
        """The samples of each batch that can be decoded, their pictures, and the seconds that decoding was waited for."""
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
                pairs = [(sample, picture) for sample, picture in opened if isinstance(picture, Picture)]
                yield [sample for sample, _ in pairs], [picture for _, picture in pairs], waited
        finally:
            decoder.shutdown(cancel_futures=True)

    def _submit(self, decoder: ThreadPoolExecutor, batch: Sequence[Sample]) -> list[tuple[Sample, Callable[[], Picture | ImageError]]]:
        """Begin to open a batch. Calling the function beside a sample waits for its image."""
        deferred = self.deferred_images(batch)
        return [(s, decoder.submit(self._open, s).result if p is None else (lambda p=p: p)) for s, p in zip(batch, deferred, strict=True)]

    def _open(self, sample: Sample) -> Picture | ImageError:
        try:
            return self.look(sample.image)
        except ImageError as error:
            return error

    def _run_fast(self, samples: Sequence[Sample], pictures: Sequence[Picture], decode_wait: float = 0.0) -> FastBatch:
        """System 1 and the trigger on one batch."""
        started = time.perf_counter()
        with track_costs() as costs:
            fast = self.fast(pictures) if samples else []
            decisions = self.decide(fast) if samples else []
        shown = [] if self.slow is None else [i for i, decision in enumerate(decisions) if decision.escalate or self.record_all]
        deferred = all(isinstance(picture, DeferredImage) for picture in pictures)
        doubtful = {i: pictures[i] for i in shown}
        return FastBatch(samples, fast, decisions, doubtful, deferred, costs, time.perf_counter() - started, decode_wait)

    def _ready(self, waiting: Sequence[FastBatch], miss_rate: float) -> bool:
        """Whether the questions that are likely to need the MLLM fill a batch. An image that was opened is not cached."""
        if self.learn is not None:
            return True
        opened = sum(len(batch.doubtful) for batch in waiting if not batch.deferred)
        deferred = sum(len(batch.doubtful) for batch in waiting if batch.deferred)
        return not opened + deferred or opened + miss_rate * deferred >= self.batch_size

    def _finish(self, waiting: Sequence[FastBatch]) -> list[Prediction]:
        """System 2 on the doubtful images of all these batches, then the predictions."""
        started = time.perf_counter()
        places = [(b, i) for b, batch in enumerate(waiting) for i in batch.doubtful]
        slow: dict[tuple[int, int], SlowResult] = {}
        with track_costs() as costs:
            if self.slow is not None and places:
                answers = self.slow([waiting[b].doubtful[i] for b, i in places], [waiting[b].fast[i] for b, i in places])
                slow = dict(zip(places, answers, strict=True))
        seconds = (time.perf_counter() - started) / max(1, sum(len(batch.samples) for batch in waiting))
        predictions = [
            self._predict(batch, i, slow.get((b, i)), costs, seconds) for b, batch in enumerate(waiting) for i in range(len(batch.samples))
        ]
        if self.learn is not None:
            self.learn(predictions)
        return self.withheld(predictions)

    def withheld(self, predictions: list[Prediction]) -> list[Prediction]:
        """The same, without the answers that are too uncertain to be given."""
        return predictions if self.abstain is None or not predictions else self.abstain(predictions)

    def _predict(self, batch: FastBatch, i: int, slow: SlowResult | None, slow_costs: TrackedCosts, seconds: float) -> Prediction:
        """The prediction for one image of a batch. Args: seconds: of System 2, per image."""
        sample, fast, decision, n = batch.samples[i], batch.fast[i], batch.decisions[i], len(batch.samples)
        category, confidence, by = resolve(fast, decision, slow, self.answer_fusion)
        shared = Cost(seconds=batch.seconds / n + seconds, decode_wait=batch.decode_wait / n)
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
            cost=batch.costs.take(fast.sha256) + slow_costs.take(fast.sha256) + shared,
            names=self.names,
        )


def resolve(
    fast: FastResult, decision: Decision, slow: SlowResult | None, answer_fusion: LogLinearFusion
) -> tuple[str, float, Literal["fast", "slow"]]:
    """(class id, confidence, who answered). Where System 2's answer is unreadable, System 1's stands, and the report counts it."""
    if decision.escalate and slow is not None and slow.category is not None:
        category, confidence = answer_fusion(fast, slow)
        return category, confidence, "slow"
    return fast.top.category, fast.top.probability, "fast"


def redecide(prediction: Prediction, trigger: Trigger, answer_fusion: LogLinearFusion, names: Mapping[str, str]) -> Prediction:
    """The prediction from the same evidence under another trigger. No model is asked."""
    (decision,) = decide(trigger, [prediction.fast])
    category, confidence, by = resolve(prediction.fast, decision, prediction.slow, answer_fusion)
    return replace(prediction, category=category, name=names[category], confidence=confidence, by=by, decision=decision, abstention=None)


def as_sample(image: ImageSource | Sample | str, index: int = 0) -> Sample:
    """A Sample of a path, a PIL image or a numpy array."""
    if isinstance(image, Sample):
        return image
    if isinstance(image, str | Path):
        return Sample(Path(image), key=str(image))
    return Sample(image, key=f"image {index}")
