"""engine=ray as a session sees it: models that answer elsewhere, and recognition by whole groups of batches."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from fgvr import planning
from fgvr.agents.leave_one_out import LeaveOneOutAnswers
from fgvr.data.near_duplicates import PerceptualHash
from fgvr.data.pictures import referred
from fgvr.errors import ImageError
from fgvr.pipeline import GROUP, Recognizer
from fgvr.runtime.pool import ModelPool
from fgvr.scale.cluster import joined
from fgvr.scale.worker import Job
from fgvr.scale.workers import IN_FLIGHT, Workers
from fgvr.session import Session
from fgvr.session.engine import Engine
from fgvr.types import ROLES, ModelSpec, Picture, Prediction, Sample
from fgvr.utils.batches import chunks
from fgvr.utils.images import StoredImage

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
_ASKED = ("encode", "encode_text", "generate", "score", "choose", "match")
_AHEAD = 2  # pieces per call in flight that may wait for an earlier one
_LOOKS = 100  # pictures that a worker hashes in one call
_EVERY = 10.0  # seconds between lines about the workers' pace


@contextmanager
def working(session: Session, files: Callable[[Session], Iterable[Path]]) -> Iterator[Session]:
    """The session, with its workers where engine=ray, who end with the block. Whoever is at work already stays.

    Args: files: of the images, some; every worker must see them. Raises ConfigError, ModelLoadError before anything is computed.
    """
    if session.config.engine.name == "local" or isinstance(session.engine, RayEngine):
        yield session
        return
    fingerprints = {role: getattr(session, role).fingerprint for role in planning.used(session.config)}
    wanted = [str(file.absolute()) for file in files(session)]
    with joined(session.config.engine) as ray:
        workers = Workers(ray, session.config)
        try:
            workers.check(wanted, fingerprints)
            log.info("%d workers are at work", len(workers))
            engine = RayEngine(session.pool, workers)
            yield session.derive({}, engine=engine, perceptual_hash=PerceptualHash(session.store, engine.looks))
            log.info("rows by worker: %s", workers.pace())
        finally:
            workers.close()


def some_files(samples: Sequence[Sample]) -> list[Path]:
    """Of the first, the middle and the last: the file, or the shard that it lies in."""
    chosen = (samples[i].image for i in sorted({0, len(samples) // 2, len(samples) - 1}) if samples)
    files = (image.file if isinstance(image, StoredImage) else image for image in chosen)
    return [file for file in files if isinstance(file, Path)]


class RayEngine(Engine):
    """The work of a session, done by workers."""

    def __init__(self, pool: ModelPool, workers: Workers) -> None:
        """Args: pool: of this process, which loads nothing: it knows the models' files."""
        super().__init__(pool)
        self._workers = workers

    def lend(self, spec: ModelSpec) -> Any:
        return _Elsewhere(self._pool.leased(spec), spec, self._workers)

    def look(self, sample: Sample) -> Picture:
        return referred(sample)

    def looks(self, samples: Sequence[Sample]) -> Iterator[bytes | None]:
        """Perceptual hashes, computed by the workers."""
        found = self.map(lambda some: self._workers.call("looks", _by_reference(some)), chunks(samples, _LOOKS))
        return (one for some in found for one in some)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        waiting = deque[Future[R]]()
        with self._workers.threads() as threads:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) >= len(self._workers) * IN_FLIGHT * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def predictions(
        self, recognizer: Recognizer, job: Callable[[], Any], samples: Sequence[Sample], *, done: int = 0, unreadable: list[ImageError]
    ) -> Iterator[list[Prediction]]:
        """Whole groups of batches go to a worker, from `done` on, so that the same images are asked together as in one process."""
        reference = [self._workers.ray.put(job())]
        batch = recognizer.batch_size
        borders = [done * batch, *range((done // GROUP + 1) * GROUP * batch, len(samples), GROUP * batch), len(samples)]
        pieces = (_by_reference(samples[start:stop]) for start, stop in pairwise(borders) if start < stop)
        told = time.monotonic()
        for answered in self.map(
            partial(self._workers.call, "recognise", reference, rows=lambda answered: len(answered.predictions)), pieces
        ):
            unreadable += [ImageError(message) for message in answered.unreadable]
            yield recognizer.withheld([replace(prediction, names=recognizer.names) for prediction in answered.predictions])
            if time.monotonic() - told > _EVERY:
                told = time.monotonic()
                log.info("rows by worker: %s", self._workers.pace())

    @property
    def loads(self) -> Mapping[str, int]:
        return {role: sum(worker["model_loads"].get(role, 0) for worker in self.workers) for role in ROLES}

    @property
    def peak_bytes(self) -> int:
        return max(worker["peak_device_bytes"] for worker in self.workers)

    @property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        return self._workers.figures()


class _Elsewhere:
    """A model by the methods of its role, which the workers answer; what its files tell is read here."""

    def __init__(self, model: Any, spec: ModelSpec, workers: Workers) -> None:
        self._model, self._spec, self._workers = model, spec, workers

    def __getattr__(self, name: str) -> Any:
        if name not in _ASKED:
            return getattr(self._model, name)
        return lambda *columns, **settings: self._workers.call("ask", self._spec, name, columns, settings)


def job_of(session: Session, build: Callable[[Session], Recognizer] | None = None) -> Job:
    """How a worker makes this session's recognizer, or the one that `build` makes.

    What is fitted once is fitted here: the trigger, the weight of System 2, the histories. The session of a job fits nothing.
    """
    made: dict[str, Any] = {"knowledge": session.knowledge}
    if build is None:
        _, statistics = session.left_out()
        trigger = session.trigger
        made |= {"policy": trigger, "trigger": trigger, "answer_fusion": session.answer_fusion}
        made["left_out"] = LeaveOneOutAnswers(lambda: ([], statistics))
    if session.config.slow.exemplars:
        made["support"] = _by_reference(session.support)
    return Job(session.config.to_dict(), made, build)


def _by_reference(samples: Sequence[Sample]) -> list[Sample]:
    return [replace(s, image=s.image.absolute()) if isinstance(s.image, Path) else s for s in samples]
