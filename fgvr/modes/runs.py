"""Where a run lies and what is written beside its predictions."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fgvr import planning
from fgvr.agents.calibration import Calibrated, Expectation
from fgvr.config import composing
from fgvr.data.streams.samples import contents_of
from fgvr.errors import StoreError
from fgvr.evaluation import records, review_page
from fgvr.evaluation import report as reports
from fgvr.evaluation.records import to_row
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes.showing import to_json, to_text
from fgvr.runtime import timeline
from fgvr.runtime.monitor import watch
from fgvr.session import Session
from fgvr.store.journal import RunFile, to_line
from fgvr.types import Prediction, Report
from fgvr.utils.files import atomic_write, read_json, short_hash, write_json
from fgvr.utils.logging import setup_logging

log = logging.getLogger(__name__)

PREDICTIONS, LESSONS, CONFIG, LOG = "predictions.jsonl", "online.jsonl", "config.yaml", "log.txt"
BASE, INPUTS = ".base", ".inputs"  # which knowledge a run was made with; which images and models


@contextmanager
def run_folder(session: Session, *, mode: str | None = None) -> Iterator[Path]:
    """`runs/<mode>/<key>` or, in a sweep, `sweeps/<hash>/<n>`; holds config.yaml and log.txt. The same command finds the same folder.

    Empty of results with `run.fresh=true`, and where the former ones are another configuration's. StoreError while another process
    writes them.
    """
    config = session.config
    own, job = mode or config.mode, composing.sweep_folder()
    folder = session.home / "runs" / own / config.key if job is None else session.home / job / own.partition("/")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        changed = (folder / ".key").exists() and (folder / ".key").read_text() != config.key
        if (config.run.fresh or changed) and mode != "replay":  # which empties it by itself
            _empty(folder)
        atomic_write(folder / ".key", config.key)
        atomic_write(folder / CONFIG, composing.to_yaml(config))
        setup_logging(level=config.logging.level, quiet=config.logging.quiet, file=folder / LOG)
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be written ({error.strerror or error}); make room there and make it writable, "
            "or choose another home: paths.home=FOLDER, or FGVR_HOME"
        ) from error
    yield folder


@contextmanager
def rows_anew(folder: Path) -> Iterator[RunFile]:
    """The run's file without rows, and no results beside it: for this process alone. StoreError while another one writes there."""
    with RunFile(folder / PREDICTIONS, fresh=True) as file:
        _forget(folder, timeline.FILE)
        yield file


def write_predictions(folder: Path, predictions: Sequence[Prediction]) -> None:
    """All rows of a run that computes nothing, and of its results only their table. Needs no lock: another process would write the same."""
    _forget(folder, timeline.FILE, PREDICTIONS + ".commit")
    atomic_write(folder / PREDICTIONS, b"".join(to_line(to_row(prediction)) for prediction in predictions))
    records.write_table(folder, predictions)


def _empty(folder: Path) -> None:
    if not (folder / PREDICTIONS).exists():  # of a mode without rows, or never begun: nobody writes any
        _forget(folder, timeline.FILE)
        return
    with rows_anew(folder):
        pass


@contextmanager
def recorded_memory(session: Session, folder: Path) -> Iterator[None]:
    """What the pool does meanwhile goes to `memory.jsonl`, one file per device, also when the run ends early."""
    with ExitStack() as recording:
        for number, member in enumerate(session.pool.members):
            recording.enter_context(watch(member).record(folder / timeline.numbered(number)))
        yield


def inputs_of(session: Session) -> dict[str, str]:
    """What a run's answers depend on beside its configuration and its base: the images by order and content, the models by their files."""
    split = session.dataset.split
    images = [contents_of(part) for part in (split.test, split.calibration)]
    return {"images": short_hash(images)} | {role: getattr(session, role).fingerprint for role in planning.used(session.config)}


def complete(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Whether there is a report, of these inputs and with the base as it is now: a base may have gained rules or descriptions since."""
    if not (folder / reports.FILE).exists() or _others(folder, inputs):
        return False
    path, _, content = (folder / BASE).read_text().rpartition("\n") if (folder / BASE).exists() else ("", "", "")
    return not path or knowledge_base.content_hash(Path(path)) in (content, None)


def made_with(base: KnowledgeBase, inputs: Mapping[str, str], folder: Path, file: RunFile) -> None:
    """Note base and inputs; predictions made with other ones are no part of this run. `file`: its rows, held by us."""
    note = f"{base.path}\n{base.manifest.content_hash if base.manifest else ''}"
    others = [*_others(folder, inputs), *(["knowledge base"] if (folder / BASE).exists() and (folder / BASE).read_text() != note else [])]
    if others:
        _forget(folder)  # first the report: it says that rows are whole
        if len(file.done()):
            log.info("changed since this run was begun: %s; starting anew", ", ".join(others))
            file.clear()
    write_json(folder / INPUTS, inputs)
    atomic_write(folder / BASE, note)


def _others(folder: Path, inputs: Mapping[str, str]) -> list[str]:
    """Which inputs are not those of the run that lies there. A run that does not say may have had any."""
    noted = read_json(folder / INPUTS) if (folder / INPUTS).exists() else {}
    return [name for name in sorted({*inputs, *noted}) if noted.get(name) != inputs.get(name)]


def _forget(folder: Path, *more: str) -> None:
    """What stands beside the rows of a run; they themselves are their file's."""
    written = (reports.FILE, reports.PAGE, records.TABLE, review_page.FILE, review_page.PAGE)
    for name in (*written, LESSONS, LESSONS + ".commit", BASE, INPUTS, *more):
        (folder / name).unlink(missing_ok=True)
    if timeline.FILE in more:
        for file in folder.glob("memory-[0-9]*.jsonl"):
            file.unlink()


def make_report(
    session: Session, predictions: Sequence[Prediction], folder: Path, *, dataset: Sequence[str], trigger: str | None = None, **facts: Any
) -> reports.RunReport:
    """Scored, with what every report says of its run.

    Args: dataset: its names, said once where they are the same; facts: of `reports.make_report`.
    """
    config = session.config
    return reports.make_report(
        predictions,
        dataset=" ".join(dict.fromkeys(dataset)),
        trigger=trigger or config.trigger_name,
        path=folder,
        config=config.to_dict(),
        measure=tuple(config.evaluation.protocols),
        **facts,
    )


_FIXED = ("sare", "gates")  # triggers with constants of their own, which look at no leave-one-out estimate
_FEW = 10  # images below which a share says nothing
_CHANCE = 3.0  # standard errors by which the escalated share may exceed the expected one


def surprises(predictions: Sequence[Prediction], session: Session) -> list[str]:
    """What a trigger has done that its user may not expect: it is unsure of every image, or of far more than it said."""
    name, trigger, n = session.config.trigger_name, session.trigger, len(predictions)
    escalated = sum(p.decision.escalate for p in predictions)
    if predictions and len(only := predictions[0].names) == 1:
        return [
            f"there is one class alone, {next(iter(only.values()))}: every image gets it, whatever it shows. Give images of other classes"
        ]
    if n < _FEW:
        return []
    if name in _FIXED and escalated == n:
        return [
            f"trigger={name} doubts every image: with {session.config.dataset.shots} images per class it is never sure enough. "
            "Write trigger=calibrated, or give more images per class (dataset.shots)"
        ]
    if isinstance(trigger, Calibrated) and isinstance(expected := trigger.expectation, Expectation):
        likely = expected.slow_rate + _CHANCE * math.sqrt(expected.slow_rate * (1 - expected.slow_rate) * (1 / n + 1 / expected.n))
        if escalated / n > likely:
            return [
                f"the trigger doubts {escalated / n:.1%} of these images and expected {expected.slow_rate:.0%}: they are harder than the "
                "support images that it was fitted on, as when they were taken elsewhere. Its other estimates are then too good, too. "
                "Support images like them help"
            ]
    return []


to_json.register(Report, lambda result: json.loads((result.path / reports.FILE).read_text()))
to_text.register(Report, lambda result: [reports.terminal(result)])
