"""The recognizer: look; if unsure, think. Batch in, batch out.

Without a System 2 (`slow=None`) what the trigger doubts keeps System 1's answer: `by` is "fast" and `Prediction.unsure` is true.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.data.pictures import DeferredImage
from fgvr.errors import ImageError
from fgvr.protocols import FastThinker, SlowThinker, Trigger
from fgvr.store.cost_tracking import TrackedCosts, track_costs
from fgvr.types import Cost, Decision, FastResult, Picture, Prediction, Sample, SlowResult

if TYPE_CHECKING:
    from fgvr.utils.images import ImageSource

_DECODERS = 8  # threads at most; decoding lets go of the interpreter, and one core decodes 290 photographs a second
_TOGETHER = 32  # batches whose doubtful images may be thought about together
_ASKED = 1 / 8  # initial estimate of the MLLM cache-miss rate among escalated images whose embedding is cached


@dataclass(frozen=True, slots=True)
class FastBatch:
    """A batch that System 1 has answered and the trigger has judged. Only the doubtful pictures are kept."""

    samples: Sequence[Sample]
    fast: Sequence[FastResult]
    decisions: Sequence[Decision]
    doubtful: Mapping[int, Picture]  # by place in the batch
    deferred: bool  # none of its pictures was opened
    work: TrackedCosts
    seconds: float  # of all its images together
    decode_wait: float = 0.0


class Recognizer:
    """Fast thinking on every image, slow thinking on those the trigger doubts. Holds handles, never weights."""

    def __init__(
        self,
        *,
        look: Callable[[ImageSource], Picture],
        deferred_images: Callable[[Sequence[Sample]], Sequence[Picture | None]] = lambda samples: [None] * len(samples),
        fast: FastThinker,
        trigger: Trigger,
        slow: SlowThinker | None,
        answer_fusion: LogLinearFusion,
        names: Mapping[str, str],
        notes: Callable[[], Sequence[str]] = tuple,
        learn: Callable[[Sequence[Prediction]], None] | None = None,
        abstain: Callable[[Sequence[Prediction]], list[Prediction]] | None = None,
        record_all: bool = False,
        batch_size: int = 32,
    ) -> None:
        """Args:
        abstain: withholds answers that are too uncertain; None = all are given.
        deferred_images: pictures whose embedding is cached, so that they are opened only when System 2 asks; None for the others.
        learn: is told each batch's answers; None = nothing is learned while running.
        notes: says, once there are results, what their reader should know, such as what the trigger expects.
        slow: System 2; None = there is none, or it is asked later: what the trigger escalates keeps System 1's answer.
        record_all: let System 2 also answer images the trigger accepts, for replays; it changes no prediction.
        """
        self._look = look
        self._deferred_images = deferred_images
        self._fast = fast
        self._trigger = trigger
        self._slow = slow
        self.answer_fusion = answer_fusion
        self.names = names
        self._notes = notes
        self._learn = learn
        self._abstain = abstain
        self._record_all = record_all and slow is not None
        self.batch_size = batch_size

    def __repr__(self) -> str:
        first = ", ".join(list(self.names.values())[:3])
        trigger = getattr(self._trigger, "name", type(self._trigger).__name__)
        more = ", ..." if len(self.names) > 3 else ""
        return f"Recognizer({len(self.names)} classes: {first}{more}; trigger {trigger}; batches of {self.batch_size}; holds no weights)"

    @property
    def fast(self) -> FastThinker:
        return self._fast

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes())

    def __call__(self, image: ImageSource | Sample | str) -> Prediction:
        return self.batch([image])[0]

    def fast_only(self, pictures: Sequence[Picture]) -> list[tuple[FastResult, Decision]]:
        """System 1 and the trigger on one batch, without System 2."""
        fast = self._fast(pictures)
        return list(zip(fast, self._trigger(fast), strict=True))

    def decide(self, results: Sequence[FastResult]) -> list[Decision]:
        """The trigger alone, on what System 1 has seen already."""
        return self._trigger(results)

    def batch(self, images: Iterable[ImageSource | Sample | str]) -> list[Prediction]:
        """Predictions in input order; an unreadable image raises ImageError."""
        samples = [as_sample(image, i) for i, image in enumerate(images)]
        seen = (self._see(batch, [self._look(s.image) for s in batch]) for batch in chunks(samples, self.batch_size))
        return [p for one in seen for p in self._think([one])]

    def stream(self, samples: Sequence[Sample], *, done: int = 0, unreadable: list[ImageError] | None = None) -> Iterator[list[Prediction]]:
        """Predictions in order, the next batch decoded while the models work on this one; no more than two are held.

        A batch comes alone, or, where few of its images are doubtful or most answers are remembered, with up to 31 others: System 2 is
        asked when a batch's worth of questions has come together, since its cost per image falls with the size of its own batches. Fewer
        than two batches of open pictures are kept for it. Who learns from each batch gets each alone.

        Args:
            done: batches to skip, already answered by an earlier run; borders depend on positions alone.
            unreadable: collects images that cannot be decoded; without it the first one raises.
        """
        batches = islice(chunks(samples, self.batch_size), done, None)
        decoder = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1), thread_name_prefix="fgvr-decode")
        waiting: list[FastBatch] = []
        asked = _ASKED
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
                deferred = all(isinstance(picture, DeferredImage) for _, picture in seen)
                waiting.append(
                    self._see([sample for sample, _ in seen], [picture for _, picture in seen], deferred=deferred, decode_wait=waited)
                )
                if not ahead or self._enough(waiting, asked):
                    predictions, waiting = self._think(waiting), []
                    asked = _asked(predictions, before=asked)
                    yield predictions
        finally:
            decoder.shutdown(cancel_futures=True)

    def _submit(self, decoder: ThreadPoolExecutor, batch: Sequence[Sample]) -> list[tuple[Sample, Callable[[], Picture | ImageError]]]:
        """Begin to open a batch; calling what stands beside a sample waits for its picture."""
        deferred = self._deferred_images(batch)
        return [(s, decoder.submit(self._open, s).result if p is None else partial(_same, p)) for s, p in zip(batch, deferred, strict=True)]

    def _open(self, sample: Sample) -> Picture | ImageError:
        try:
            return self._look(sample.image)
        except ImageError as error:
            return error

    def _see(
        self, samples: Sequence[Sample], pictures: Sequence[Picture], *, deferred: bool = False, decode_wait: float = 0.0
    ) -> FastBatch:
        """Look at all, and decide which are doubtful."""
        started = time.perf_counter()
        with track_costs() as work:
            fast = self._fast(pictures) if samples else []
            decisions = self._trigger(fast) if samples else []
        shown = [] if self._slow is None else [i for i, decision in enumerate(decisions) if decision.escalate or self._record_all]
        doubtful = {i: pictures[i] for i in shown}
        return FastBatch(samples, fast, decisions, doubtful, deferred, work, time.perf_counter() - started, decode_wait)

    def _enough(self, waiting: Sequence[FastBatch], asked: float) -> bool:
        """Whether to think now. `asked`: of those whose picture was not opened, the share that is likely to need the MLLM."""
        if self._learn is not None or len(waiting) >= _TOGETHER:
            return True
        opened = sum(len(seen.doubtful) for seen in waiting if not seen.deferred)
        deferred = sum(len(seen.doubtful) for seen in waiting if seen.deferred)
        return not opened + deferred or opened + asked * deferred >= self.batch_size

    def _think(self, waiting: Sequence[FastBatch]) -> list[Prediction]:
        """System 2 on the doubtful images of all these batches, then the predictions."""
        started = time.perf_counter()
        with track_costs() as work:
            slow = self._think_slowly(waiting)
        count = sum(len(seen.samples) for seen in waiting)
        seconds = (time.perf_counter() - started) / max(1, count)
        resolved = [p for seen, answers in zip(waiting, slow, strict=True) for p in self._resolve_all(seen, answers, work, seconds)]
        if self._learn is not None:
            self._learn(resolved)
        return resolved if self._abstain is None or not resolved else self._abstain(resolved)

    def _think_slowly(self, waiting: Sequence[FastBatch]) -> list[dict[int, SlowResult]]:
        """Of each batch the slow answers by place."""
        places = [(b, i) for b, seen in enumerate(waiting) for i in seen.doubtful]
        if self._slow is None or not places:
            return [{} for _ in waiting]
        answers = self._slow([waiting[b].doubtful[i] for b, i in places], [waiting[b].fast[i] for b, i in places])
        found: list[dict[int, SlowResult]] = [{} for _ in waiting]
        for (b, i), answer in zip(places, answers, strict=True):
            found[b][i] = answer
        return found

    def _resolve_all(self, seen: FastBatch, slow: Mapping[int, SlowResult], thought: TrackedCosts, seconds: float) -> list[Prediction]:
        """`seconds`: of thinking, per image."""
        own = len(seen.samples) or 1
        passed = Cost(seconds=seen.seconds / own + seconds, decode_wait=seen.decode_wait / own)
        rows = zip(seen.samples, seen.fast, seen.decisions, strict=True)
        return [
            self._resolve(sample, fast, decision, slow.get(i), seen.work.take(fast.sha256) + thought.take(fast.sha256) + passed)
            for i, (sample, fast, decision) in enumerate(rows)
        ]

    def _resolve(self, sample: Sample, fast: FastResult, decision: Decision, slow: SlowResult | None, cost: Cost) -> Prediction:
        category, confidence, by = resolve(fast, decision, slow, self.answer_fusion)
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


def resolve(
    fast: FastResult, decision: Decision, slow: SlowResult | None, answer_fusion: LogLinearFusion
) -> tuple[str, float, Literal["fast", "slow"]]:
    """(class id, confidence, who answered). An unreadable slow answer leaves System 1's, marked as fast and counted as unreadable."""
    if decision.escalate and slow is not None and slow.category is not None:
        category, confidence = answer_fusion(fast, slow)
        return category, confidence, "slow"
    return fast.top.category, fast.top.probability, "fast"


def redecide(prediction: Prediction, trigger: Trigger, answer_fusion: LogLinearFusion, names: Mapping[str, str]) -> Prediction:
    """The same evidence under another trigger: no model is asked."""
    (decision,) = trigger([prediction.fast])
    category, confidence, by = resolve(prediction.fast, decision, prediction.slow, answer_fusion)
    return replace(prediction, category=category, name=names[category], confidence=confidence, by=by, decision=decision, abstention=None)


def _asked(predictions: Sequence[Prediction], *, before: float) -> float:
    """Share of System 2's answers that cost a call; without any, what it was before."""
    thought = [p for p in predictions if p.slow is not None]
    return sum(p.cost.mllm_calls > 0 for p in thought) / len(thought) if thought else before


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
