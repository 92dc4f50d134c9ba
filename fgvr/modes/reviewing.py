"""Modes that look at finished runs: replay, compare. No model is asked."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fgvr import assembly
from fgvr.data import leaks
from fgvr.errors import ConfigError, KnowledgeError, StoreError
from fgvr.evaluation import compare as comparing
from fgvr.evaluation import records
from fgvr.evaluation import replay as replays
from fgvr.evaluation import report as reports
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes.importing import is_foreign, rescore
from fgvr.modes.runs import BASE, CONFIG, PREDICTIONS, run_folder, write_rows
from fgvr.types import Report


def replay(cfg: DictConfig) -> Report:
    """Decide and score a recorded run again with other settings; no model is asked, and torch is not even imported."""
    file = Path(cfg.predictions).expanduser()
    if is_foreign(file) and file.exists():
        return rescore(cfg, file)
    if not file.is_file():
        raise StoreError(f"{file} does not exist; predictions= takes a run's {PREDICTIONS}")
    merged = assembly.replayed_config(cfg, file.parent / CONFIG)
    base = _base_of(file)
    with run_folder(merged, mode="replay") as folder:
        decide = assembly.build_replay(merged, file.parent / CONFIG, base)
        predictions = [records.as_recorded(p) for p in decide(records.read(file, decide.names))]
        write_rows(folder, map(records.to_row, predictions))
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
    allowed = OmegaConf.select(OmegaConf.load(run / CONFIG), "evaluation.allow_overlap")
    return ["test images may have helped to build what is tested: the recorded run allowed it, and did not finish"] if allowed else []


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
