"""A person as System 2: the page of doubtful images that a run leaves, and mode=review, which reads the answers. No model is asked."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from fgvr.agents.calibration import Calibrator
from fgvr.config.composing import load_config, recorded_config
from fgvr.config.configuration import Config
from fgvr.data import learned
from fgvr.data.datasets import Dataset
from fgvr.errors import ConfigError, DatasetError, FgvrError, KnowledgeError, StoreError
from fgvr.evaluation import answers as answer_files
from fgvr.evaluation import classify_report, records, review_page
from fgvr.evaluation import report as reports
from fgvr.evaluation.review_figures import ReviewFigures
from fgvr.evaluation.review_page import Review
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes.runs import CONFIG, PREDICTIONS, make_report, recorded_memory, run_folder, write_predictions
from fgvr.modes.showing import to_json, to_text
from fgvr.session import Session
from fgvr.types import UNKNOWN, Prediction, Report, Sample
from fgvr.utils.files import atomic_write, read_json
from fgvr.utils.paths import user_path
from fgvr.utils.text import printable

if TYPE_CHECKING:
    from fgvr.utils.images import ImageSource

log = logging.getLogger(__name__)

_OURS = ("paths", "logging", "run", "store", "runtime", "server")  # the run's own place and machine may have been others


# --- the page that a run leaves ----------------------------------------------------------------------------------------------


def write_page(
    session: Session, folder: Path, predictions: Sequence[Prediction], *, title: str, pictures: "Mapping[str, ImageSource]"
) -> list[str]:
    """`review.html` in a run's folder, on which a person names the doubtful images; what is to be done with it."""
    base, asked = session.knowledge, session.config.slow.candidates
    doubtful = answer_files.waiting(predictions)
    review = Review.of(doubtful, {record.id: record.name for record in base.classes}, base.path)
    known, probable = session.dataset.split.known, session.config.trigger_name == Calibrator.name
    candidates = review_page.CANDIDATES if asked == "all" else asked
    page = review_page.render(review, doubtful, title=title, candidates=candidates, pictures=pictures, known=known, probable=probable)
    review_page.write(review, page, folder)
    if not doubtful:
        asks = session.config.slow.decoder == "person"
        return [f"a person need look at none of {len(predictions):,} images"] if asks else []
    return [
        f"{len(doubtful):,} of {len(predictions):,} images wait for a person: open {folder / review_page.PAGE} in a browser, then write "
        "mode=review answers=answers.csv"
    ]


# --- the answers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Reviewed:
    """A run with a person's answers, and what was learned from them."""

    figures: ReviewFigures
    predictions: Sequence[Prediction]
    run: Path  # that was reviewed
    path: Path  # predictions.jsonl, report.html
    report: Report | None  # None where no label is known
    learned: Path | None = None  # the photographs that joined the support images
    base: KnowledgeBase | None = None  # built with them

    def as_json(self) -> dict[str, Any]:
        report = {} if self.report is None else read_json(self.report.path / reports.FILE)
        return report | {
            "review": self.figures.to_json(),
            "run": str(self.run),
            "path": str(self.path),
            "learned": None if self.learned is None else str(self.learned),
            "knowledge_base": None if self.base is None else str(self.base.path),
        }

    def as_text(self) -> list[RenderableType]:
        lines = [f"{self.path}/{reports.PAGE}"]
        if self.learned is not None and self.base is not None:
            lines += [
                f"learned: another knowledge base with {len(self.base.support):,} support images at {self.base.path}; the former one stays",
                f"use it: write knowledge.learned={self.learned} beside the words of the former command",
            ]
        return [self.figures.table(f"review of {self.run}"), *(Text(line, overflow="fold") for line in lines)]


def review(session: Session) -> Reviewed:
    """Settle what a person has answered, score it where labels exist, and learn from it where that is wished."""
    file = user_path(session.config.answers)
    run = _run(session, file)
    asked = review_page.read(run)
    answers = answer_files.read(file, asked)
    before = records.read(run / PREDICTIONS, asked.classes)
    if Review.of(answer_files.waiting(before), asked.classes, asked.base).run != asked.run:
        raise StoreError(f"{run / PREDICTIONS} has changed since the page was written; make the run again, then open its new review.html")
    session = Session(_with_run(session.config, run, file))
    with run_folder(session, mode="review") as folder:
        settled = [records.as_recorded(p) for p in answer_files.apply_answers(before, answers, asked.classes)]
        write_predictions(folder, settled)
        figures = ReviewFigures.of(settled, before)
        scored = _report(session, run, folder, settled, figures, asked)
        table, base = (_learn(session, folder, settled, asked) if session.config.review.learn else None) or (None, None)
    return Reviewed(figures, settled, run, folder, scored, table, base)


def _run(session: Session, file: Path) -> Path:
    """The folder of the run that the answers are of: as given, or by the name that they carry."""
    if session.config.review.run is not None:
        folder = user_path(session.config.review.run)
        if not folder.is_dir():
            raise StoreError(f"{folder} is no folder; review.run takes the folder of a run, the one that holds {review_page.PAGE}")
        return folder
    wanted, home = answer_files.run_of(file), session.home
    pages = [page for pattern in ("runs/*/*", "sweeps/*/*") for page in sorted(home.glob(f"{pattern}/{review_page.FILE}"))]
    for page in pages:
        if f'"{wanted}"' in page.read_text(encoding="utf-8")[:200] and review_page.read(page.parent).run == wanted:
            return page.parent
    raise StoreError(
        f"{file} holds answers of the run {wanted}, and none of the {len(pages)} reviews in {home} is that one; name its folder: "
        "review.run=FOLDER (or its home: paths.home=FOLDER)"
    )


def _with_run(config: Config, run: Path, file: Path) -> Config:
    """The run's own configuration, for this mode, place and machine."""
    if not (run / CONFIG).exists():
        raise StoreError(f"no {CONFIG} in {run}: a review needs the whole folder of a run")
    recorded = recorded_config(run / CONFIG)
    given, theirs = config.to_dict(), recorded.to_dict()
    usual = load_config("mode=review", "answers=-", f"paths.home={config.paths.home}").to_dict()
    own = (*_OURS, "mode", "answers", "review")
    if others := [key for key in usual if key in theirs and key not in own and given[key] not in (usual[key], theirs[key])]:
        raise ConfigError(f"{', '.join(others)}: mode=review takes all of this from the run {run}; leave it out, or make another run")
    here = {key: given[key] for key in _OURS}
    asked = {"run": str(run), "learn": config.review.learn, "of": "image" if recorded.mode == "classify" else "dataset"}
    return recorded.derive({**here, "mode": "review", "answers": str(file), "review": asked})


def _report(
    session: Session, run: Path, folder: Path, settled: Sequence[Prediction], figures: ReviewFigures, asked: Review
) -> reports.RunReport | None:
    """report.html and, where labels are known, report.json."""
    notes = [*figures.sentences(), f"review of {run}"]
    if not any(p.label is not None for p in settled):
        page = classify_report.render(settled, _pictures(session, settled), notes)
        atomic_write(folder / reports.PAGE, printable(page))
        return None
    former = reports.load(run).notes if (run / reports.FILE).exists() else ()
    report = make_report(
        session,
        settled,
        folder,
        dataset=(session.dataset.name, session.dataset.world),
        notes=(*notes, *(note for note in former if review_page.PAGE not in note)),
        classes=asked.classes,
        pictures=_pictures(session, settled),
        review=figures.to_json(),
    )
    reports.write(report, folder)
    return report


def _pictures(session: Session, predictions: Sequence[Prediction]) -> "dict[str, ImageSource]":
    """Where each image of the run lies."""
    if session.config.review.of == "image":
        root = user_path(session.config.image)
        return {p.image: root / p.image if root.is_dir() else root for p in predictions}
    return {sample.key: sample.image for sample in session.dataset.split.test}


def _learn(session: Session, folder: Path, settled: Sequence[Prediction], asked: Review) -> tuple[Path, KnowledgeBase] | None:
    """A base with the named photographs among its support images; the former one stays. None where none was named."""
    pictures = _pictures(session, settled)
    _check_base(asked, session.dataset)
    named = [p for p in settled if p.by == "person" and p.category != UNKNOWN]
    if not named:
        log.warning("nothing to learn: no image was given a class")
        return None
    absent = [p.image for p in named if not isinstance(pictures.get(p.image), Path)]
    if absent:
        raise DatasetError(f"{absent[0]}, which a person has named, is not in the images of the run any more; put it back, then learn")
    table = session.config.knowledge.learned
    before = [] if table is None else learned.read(user_path(table))
    samples = {sample.sha256: sample for sample in before}
    samples |= {p.sha256: Sample(pictures[p.image], p.image, p.category, p.sha256) for p in named}  # the latest word stands
    written = learned.write(session.home / "learned", session.dataset.name, list(samples.values()))
    session = session.derive({"knowledge.learned": str(written), "knowledge.path": None, "knowledge.build": "missing"})
    try:
        with recorded_memory(session, folder):
            return written, session.open_knowledge(building=True)
    except FgvrError as error:
        raise type(error)(f"{error} (the answers are settled in {folder}; nothing was learned)") from error


def _check_base(asked: Review, dataset: Dataset) -> None:
    """Learning builds from the dataset; what the run's base has from elsewhere would be lost. Raises KnowledgeError."""
    there = {sample.sha256 for sample in dataset.split.support}
    images = [] if asked.base is None else [s.key for s in knowledge_base.load(asked.base).support if s.sha256 not in there]
    classes = {*asked.classes} ^ {*dataset.catalog.ids}
    if images or classes:
        what = f"holds {len(images)} images that {dataset.name} does not have" if images else f"has other classes than {dataset.name}"
        raise KnowledgeError(f"{asked.base} {what}, and learning would lose them: put the named photographs into it with fgvr add")


to_json.register(Reviewed, Reviewed.as_json)
to_text.register(Reviewed, Reviewed.as_text)
