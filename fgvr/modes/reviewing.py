"""Modes that look at finished runs: replay, compare. No model is asked."""

from __future__ import annotations

import shlex
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fgvr import assembly
from fgvr.data import leaks
from fgvr.errors import ConfigError, KnowledgeError, StoreError
from fgvr.evaluation import compare as comparing
from fgvr.evaluation import prediction_table, records
from fgvr.evaluation import replay as replays
from fgvr.evaluation import report as reports
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes.runs import BASE, CONFIG, PREDICTIONS, run_folder, write_rows
from fgvr.types import Report
from fgvr.utils.files import read_json

MARK = "imported.json"
"""Beside imported predictions: where they come from."""


def replay(cfg: DictConfig) -> Report:
    """Decide and score a recorded run again with other settings; no model is asked, and torch is not even imported."""
    file = _recorded(Path(cfg.predictions).expanduser())
    if file.with_name(MARK).exists():
        return _rescore(cfg, file)
    merged = assembly.replayed_config(cfg, file.parent / CONFIG)
    base = _base_of(file)
    with run_folder(merged, mode="replay") as folder:
        decide = assembly.build_replay(merged, file.parent / CONFIG, base)
        predictions = [records.as_recorded(p) for p in decide(records.read(file, decide.names))]
        write_rows(folder, map(records.to_row, predictions))
        prediction_table.write(folder, predictions)
        report = reports.make_report(
            predictions,
            classes=decide.names,
            dataset=" ".join(dict.fromkeys((base.origin.dataset, base.origin.world))),
            trigger=assembly.trigger_name(merged),
            notes=(*_leaked(file.parent), f"replay of {file}", replays.COSTS, *([merged.models.notice] if merged.models.notice else [])),
            model_loads={"mllm": 0, "encoder": 0, "joint": 0},
            path=folder,
            config=assembly.to_dict(merged),
            measure=tuple(merged.evaluation.protocols),
        )
        reports.write(report, folder)
        return report


def _recorded(path: Path) -> Path:
    """The predictions a user means. StoreError that says what to give where there are none."""
    takes = f"predictions= takes a run's folder, or the {PREDICTIONS} in it"
    file = path / PREDICTIONS if path.is_dir() else path
    if not path.exists():
        raise StoreError(f"{path} does not exist; {takes}")
    if path.suffix.lower() == ".json" or (not file.exists() and not (path / CONFIG).exists() and any(path.glob("*.json"))):
        raise StoreError(f"{path} is no {PREDICTIONS} of fgvr; {_imported(path)}, and give the folder that it writes")
    if not file.exists():
        raise StoreError(f"{path} holds no {PREDICTIONS}; {takes}, as mode=evaluate writes them")
    if not file.with_name(CONFIG).exists() and not file.with_name(MARK).exists():
        raise StoreError(f"no {CONFIG} beside {file}: {takes}. Results of another program: {_imported(path)}")
    if file.stat().st_size == 0:
        raise StoreError(f"{file} is empty: the run answered no image yet; the same mode=evaluate again goes on")
    return file


def _imported(path: Path) -> str:
    return f"convert results of SARE or FineR with: python scripts/import_results.py {shlex.quote(str(path))}"


def _rescore(cfg: DictConfig, file: Path) -> Report:
    """Imported answers hold no evidence to decide again; every protocol that needs no model scores them."""
    try:
        mark = read_json(file.with_name(MARK))
        classes, names, notes, claimed, source = mark["classes"], mark["names"], mark["notes"], mark["claimed"], mark["from"]
        kind = mark["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file.with_name(MARK)} cannot be read ({error!r}); import the results again") from error
    predictions = records.read(file, names)
    with run_folder(cfg, mode="replay") as folder:
        write_rows(folder, map(records.to_row, predictions))
        prediction_table.write(folder, predictions)
        right = sum(prediction.correct is True for prediction in predictions) / len(predictions)
        claim = [] if claimed is None else [f"the file claims an accuracy of {claimed:.3f}; by class identity it is {right:.3f}"]
        report = reports.make_report(
            predictions,
            classes=classes,
            dataset=Path(source).name,
            trigger=kind,
            notes=(f"imported from {source} ({kind})", *claim, *notes),
            model_loads={"mllm": 0, "encoder": 0, "joint": 0},
            path=folder,
            config=assembly.to_dict(cfg),
            measure=tuple(cfg.evaluation.protocols),
        )
        reports.write(report, folder)
        return report


def compare(cfg: DictConfig) -> comparing.Comparison:
    """Finished runs beside each other, paired by image; nothing is computed anew."""
    given = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    if not given:
        raise ConfigError("runs=[]: give the folders of two runs, as in runs=[A,B], or of one sweep")
    return comparing.compare([Path(str(run)).expanduser() for run in given])


def _leaked(run: Path) -> list[str]:
    """What a report of the recorded run must say before any number: who replays it looks at no image."""
    if (run / reports.FILE).exists():
        return leaks.told(reports.load(run).notes)
    recorded = OmegaConf.load(run / CONFIG)
    allowed = OmegaConf.select(recorded, "evaluation.allow_overlap") or OmegaConf.select(recorded, "evaluation.on_overlap") == "allow"
    return ["test images may resemble the base's own: the recorded run allowed it, and did not finish"] if allowed else []


def _base_of(file: Path) -> KnowledgeBase:
    """The knowledge base a recorded run was made with, as it was then."""
    note = file.with_name(BASE)
    if not note.exists():
        raise StoreError(f"nothing beside {file} says which knowledge base it was made with; replay takes the folder of mode=evaluate")
    path, _, content = note.read_text().rpartition("\n")
    base = knowledge_base.load(Path(path))
    if base.manifest is None or base.manifest.content_hash != content:
        raise KnowledgeError(f"the knowledge base at {path} has changed since this run: evaluate again, then replay that")
    return base
