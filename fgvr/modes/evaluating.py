"""mode=evaluate and its presets: the test images, recognised and scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from fgvr import planning
from fgvr.agents.online import OnlineRetrieval, OnlineUpdate
from fgvr.agents.trigger import Always
from fgvr.data import leaks
from fgvr.data.datasets import Dataset
from fgvr.data.leaks import Overlap
from fgvr.data.streams.samples import pictures_of, position_of
from fgvr.errors import DatasetError, ImageError
from fgvr.evaluation import records
from fgvr.evaluation import report as reports
from fgvr.evaluation.memory_history import memory_history
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.evaluation.provenance import provenance
from fgvr.evaluation.records import KEPT, Recorded, as_recorded, outcomes, to_row
from fgvr.evaluation.trackers import Tracker, tracked
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes.review import write_page
from fgvr.modes.runs import LESSONS, PREDICTIONS, complete, inputs_of, made_with, make_report, recorded_memory, run_folder, surprises
from fgvr.pipeline import Recognizer, redecide
from fgvr.runtime import timeline
from fgvr.runtime.pool import ModelPool
from fgvr.scale import job_of, some_files, working
from fgvr.session import Session
from fgvr.store.journal import RunFile
from fgvr.types import DeviceUse, Prediction, Report
from fgvr.utils.files import file_size
from fgvr.utils.progress import track

log = logging.getLogger(__name__)

Build = Callable[[Session], Recognizer]


def evaluate(session: Session, build: Build | None = None) -> Report:
    """Recognise the test images and score them. Killed at any point, the same command goes on where it was.

    Args: build: another recognizer than the session's own, which asks no MLLM.
    """
    cfg = session.config
    with run_folder(session) as folder:
        inputs = inputs_of(session)
        if not cfg.run.fresh and complete(folder, inputs):
            log.info("complete already (run.fresh=true starts anew): %s", folder)
            return reports.load(folder)
        with working(session, images_of) as session:
            return _evaluate(session, folder, inputs, build)


def images_of(session: Session) -> list[Path]:
    """Some of the dataset's files."""
    return [file for part in (session.dataset.split.support, session.dataset.split.test) for file in some_files(part)]


def _evaluate(session: Session, folder: Path, inputs: Mapping[str, str], build: Build | None) -> Report:
    cfg = session.config
    _ = session.sentences  # what the protocols need is there, or said before anything is computed
    session.check_trigger()
    listed, policy = len(session.dataset.split.test), cfg.evaluation.overlap_policy
    overlaps = leaks.split_overlaps(session.dataset.split, session.perceptual_hash)
    session = _apart(session, overlaps)
    tracking = tracked(cfg.logging.tracker, folder, f"{cfg.mode}/{folder.name}", cfg.to_dict())
    with RunFile(folder / PREDICTIONS) as file, tracking as tracker:
        with recorded_memory(session, folder):
            made_with(session.knowledge, inputs, folder, file)
            foreign = _foreign_overlaps(session.knowledge, session.dataset)
            session, overlaps = _apart(session, foreign, knowledge=session.knowledge), [*overlaps, *foreign]
            recognizer = build(session) if build else session.recognizer
            predictions, unreadable = _recognise(session, file, recognizer, tracker, build)
        slow_right = _slow_right(predictions, recognizer)
        leaked = [leaks.note(len(overlaps), listed, policy)] if overlaps else []
        split, world = session.dataset.split, session.dataset.world
        person = cfg.slow.decoder == "person"
        asked = write_page(session, folder, predictions, title=world, pictures=pictures_of(split.test)) if person else []
        lost = [f"{len(unreadable):,} test images could not be read any more, the first: {unreadable[0]}"] if unreadable else []
        notes = (*leaked, *lost, *asked, *_notes(session, recognizer), *(() if build else surprises(predictions, session)))
        report = _report(session, folder, predictions, notes=notes, slow_right=slow_right, tracker=tracker)
        tracker.finish(report)
        records.write_table(folder, predictions)
        reports.write(report, folder)
    return report


def _recognise(
    session: Session, file: RunFile, recognizer: Recognizer, tracker: Tracker, build: Build | None
) -> tuple[Sequence[Prediction], Sequence[ImageError]]:
    """All predictions, those of an earlier, interrupted run included, which stay in the run's file; and what could not be read in this one.

    Raises DatasetError where the images themselves have gone, as with a disk that is away.
    """
    oracle, dataset = session.policy, session.dataset
    samples = dataset.split.test
    if not samples:
        raise DatasetError(f"{dataset.name} at {dataset.root} has no test images; give some a test/ folder, or lower dataset.shots")
    made: dict[int, Prediction] = {}
    unreadable: list[ImageError] = []
    with _lessons(file.path.parent, recognizer, file.done()):
        rows = file.done()
        first = len(rows)
        # Batches that an earlier run has answered: up to the one that holds its last row.
        done = position_of(samples, rows[-1]["image"]) // recognizer.batch_size + 1 if rows else 0
        tracker.resume(Recorded(rows))
        stream = session.engine.predictions(recognizer, partial(job_of, session, build), samples, done=done, unreadable=unreadable)
        left = len(samples) - done * recognizer.batch_size
        for predictions in track(stream, "test images", left, weigh=len):
            if unreadable and (gone := [path for path in some_files(samples) if not path.exists()]):
                raise DatasetError(
                    f"{gone[0]} was there when this run began, and is not any more ({unreadable[0]}): is its disk away? "
                    "What is done is kept; the same command goes on with the images that are there then"
                )
            if isinstance(oracle, Oracle):
                predictions = [oracle.redecide(prediction, recognizer.names) for prediction in predictions]
            file.append(to_row(prediction) for prediction in predictions)
            tracker.batch(predictions)
            place = first + len(made)
            made.update(enumerate(map(as_recorded, predictions[: max(0, KEPT - place)]), place))
        return Recorded(file.done(), recognizer.names, made), unreadable


@contextmanager
def _lessons(folder: Path, recognizer: Recognizer, rows: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Replays what an interrupted run has learned, then journals what is learned from here on. Lessons of a lost batch are dropped."""
    if not isinstance(recognizer.fast, OnlineRetrieval):
        yield
        return
    answered = {row["image"] for row in rows}
    with RunFile(folder / LESSONS) as journal:
        known = list(takewhile(lambda row: row["image"] in answered, journal.done()))
        journal.keep(len(known))
        recognizer.fast.state.apply(OnlineUpdate(**row) for row in known)
        recognizer.fast.journal = lambda updates: journal.append(asdict(update) for update in updates)
        yield


def _apart(session: Session, overlaps: Sequence[Overlap], **made: Any) -> Session:
    """Without the test images that `evaluation.on_overlap` leaves out, which is said."""
    policy = session.config.evaluation.overlap_policy
    split = leaks.enforce(session.dataset.split, overlaps, policy)
    for overlap in overlaps:
        log.log(logging.INFO if policy == "drop" else logging.WARNING, "test image %s", overlap)
    return session.derive({}, dataset=replace(session.dataset, split=split), **made)


def _foreign_overlaps(base: KnowledgeBase, dataset: Dataset) -> list[Overlap]:
    """Test images that are images of a base made from another dataset; of those only the content is known."""
    own = {sample.sha256 for sample in dataset.split.support}
    foreign = {support.sha256: f"knowledge base: {support.key}" for support in base.support if support.sha256 not in own}
    return leaks.exact_overlaps(dataset.split.test, foreign)


def _unseen(base: KnowledgeBase, dataset: Dataset) -> list[str]:
    """The base's own images can be compared only where the dataset still has them."""
    there = {sample.sha256 for sample in dataset.split.support}
    absent = sum(support.sha256 not in there for support in base.support)
    return [f"{absent} images of the base are not in this dataset: only exact copies of them are known"] if absent else []


def _notes(session: Session, recognizer: Recognizer) -> tuple[str, ...]:
    """What a reader must know before any number, after the leaks: the models' own limits, and the dataset's."""
    cfg, dataset = session.config, session.dataset
    known = [cfg.models.notice] if cfg.models.notice else []
    if published := cfg.published:  # an experiment=... of the literature
        ours = "nobody has run it here yet" if published.ours is None else f"our best so far {published.ours} %"
        known.append(f"published: {published.top1} % ({published.source}; {ours}). Mind that {published.caution}")
    return (
        *known,
        *session.pool.notes,
        *dataset.notes,
        *recognizer.notes,
        *_unseen(session.knowledge, dataset),
        leaks.scope(dataset.split.test),
    )


def _slow_right(predictions: Sequence[Prediction], recognizer: Recognizer) -> np.ndarray | None:
    """Which labelled images trigger=always would have right; None unless every slow answer was recorded."""
    if any(p.slow is None for p in predictions):
        return None
    always = Always()
    return outcomes(redecide(p, always, recognizer.answer_fusion, recognizer.names) for p in predictions).right


def _report(
    session: Session,
    folder: Path,
    predictions: Sequence[Prediction],
    *,
    notes: Sequence[str],
    slow_right: np.ndarray | None,
    tracker: Tracker,
) -> reports.RunReport:
    cfg, dataset, base = session.config, session.dataset, session.knowledge
    recorded = timeline.read(folder / timeline.FILE) if file_size(folder / timeline.FILE) else None  # empty: the disk had no room for it
    return make_report(
        session,
        predictions,
        folder,
        dataset=(dataset.name, dataset.world),
        notes=notes,
        classes={category.id: category.name for category in dataset.catalog.categories},
        model_loads=session.engine.loads,
        peak_device_bytes=session.engine.peak_bytes,
        devices=_devices(session.pool),
        workers=session.engine.workers,
        skipped=len(dataset.bad_images) + len(dataset.split.test) - len(predictions),
        pictures=pictures_of(dataset.split.test),
        known=dataset.split.known,
        provenance={
            **provenance(),
            "models": ", ".join(f"{one.role} {one.source} {one.dtype}" for one in (session.specs[role] for role in planning.used(cfg))),
            "knowledge base": f"{base.path}, content {base.manifest.content_hash[:12]}" if base.manifest else "",
        },
        memory=None if recorded is None else memory_history(recorded),
        peak_host_bytes=max((sample.rss for sample in recorded.samples), default=None) if recorded is not None else None,
        slow_right=slow_right,
        decode_wait=tracker.decode_wait,
        cache_hits=tracker.cache_hits,
        sentences=session.sentences,
    )


def _devices(pool: ModelPool) -> tuple[DeviceUse, ...]:
    """What each device did, where there are several."""
    members = pool.members if len(pool.members) > 1 else ()
    return tuple(DeviceUse(one.device.name, one.budget, one.peak_bytes, dict(one.loads)) for one in members)
