"""mode=classify: images of a user, answered with reasons."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fgvr.data.streams.formats import Format
from fgvr.data.streams.opening import open_images
from fgvr.data.streams.parquet import Parquet
from fgvr.data.streams.samples import pictures_of
from fgvr.data.streams.webdataset import WebDataset
from fgvr.errors import DatasetError, ImageError
from fgvr.evaluation import classify_report, records
from fgvr.evaluation import report as reports
from fgvr.evaluation.console import prediction_tables
from fgvr.evaluation.records import Recorded, to_row
from fgvr.modes.review import write_page
from fgvr.modes.runs import rows_anew, run_folder, surprises
from fgvr.modes.showing import to_json, to_text
from fgvr.scale import job_of, some_files, working
from fgvr.session import Session
from fgvr.types import Sample
from fgvr.utils.files import atomic_write
from fgvr.utils.images import list_images, passed_over
from fgvr.utils.paths import user_path
from fgvr.utils.progress import track
from fgvr.utils.text import printable

log = logging.getLogger(__name__)


def classify(session: Session, *, review: bool = False) -> Recorded:
    """Predictions with reasons for an image or a folder; what is unreadable is named and stops nothing. `review`: leave review.html."""
    config = session.config
    asked = user_path(config.image)
    samples = _asked_for(asked, session.home)
    unreadable: list[ImageError] = []
    known = [config.models.notice] if config.models.notice else []
    for note in known:  # before a base is built with them
        log.warning("%s", note)
    with run_folder(session) as folder, rows_anew(folder) as file:
        with working(session, lambda _: some_files(samples)) as at_work:
            recognizer = at_work.recognizer_of_pictures()
            by = _answered_with(at_work)
            log.info("%s", by)
            stream = at_work.engine.predictions(recognizer, partial(job_of, at_work), samples, unreadable=unreadable)
            for predictions in track(stream, "images", len(samples), weigh=len):
                file.append(to_row(prediction) for prediction in predictions)
        answered = Recorded(file.done(), recognizer.names, folder=folder, unreadable=unreadable)
        records.write_table(folder, answered)
        wanted = review or config.slow.decoder == "person"
        notes = write_page(session, folder, answered, title=asked.name, pictures=pictures_of(samples)) if wanted else []
        atomic_write(folder / reports.PAGE, printable(classify_report.render(answered, pictures_of(samples), [by, *known, *notes])))
    for note in [*notes, *surprises(answered, session)]:
        log.warning("%s", note)
    log.info("with all reasons: %s", folder / reports.PAGE)
    for error in unreadable:
        log.error("%s", error)
    if not answered:
        raise ImageError(f"none of {len(samples)} images could be read: {unreadable[0]}")
    return answered


def _answered_with(session: Session) -> str:
    models, base = session.config.models, session.knowledge
    by = " and ".join(models[role].source for role in ("encoder", "mllm") if role in models.present)
    some = ", ".join([record.name for record in base.classes][:3] + ["..."] * (len(base.classes) > 3))
    return f"answered with {by}, among the {len(base.classes)} classes of {base.origin.dataset} ({some})"


def stream_at(path: Path) -> Format | None:
    """Shards of one kind: a file, a pattern, or a folder that holds nothing else. None: images lie there, or nothing."""
    files = [file for file in path.iterdir() if not file.name.startswith((".", "_"))] if path.is_dir() else [path] if path.suffix else []
    suffixes = {file.suffix for file in files if file.name != "classnames.txt"}
    if suffixes == {".tar"}:
        return WebDataset(path, label=None)
    return Parquet(path, label=None) if suffixes == {".parquet"} else None


def _asked_for(path: Path, home: Path) -> Sequence[Sample]:
    if (stream := stream_at(path.absolute())) is not None:
        samples, notes = open_images(stream, cache_dir=home / "store")
        for note in notes:
            log.warning("%s: %s", path, note)
        return samples
    if path.is_dir():
        found = [Sample(file, key=str(file.relative_to(path))) for file in list_images(path, recursive=True)]
        for note in passed_over([path]):
            log.warning("%s", note)
        if not found:
            raise DatasetError(f"{path} holds no images")
        return found
    if not path.exists():
        raise ImageError(f"{path} does not exist; image= takes an image or a folder of images")
    return [Sample(path, key=str(path))]


to_json.register(Recorded, lambda result: [to_row(prediction) for prediction in result])
to_text.register(Recorded, prediction_tables)
