"""mode=replay on a file that another program wrote: read, scored by our protocols, kept as a run that can be compared."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fgvr import assembly
from fgvr.evaluation import importers, records
from fgvr.evaluation import report as reports
from fgvr.modes.runs import run_folder, write_rows
from fgvr.types import Report
from fgvr.utils.files import write_json


def is_foreign(path: Path) -> bool:
    """Ours is a .jsonl; others write .json, or a folder of them."""
    return path.is_dir() or path.suffix.lower() == ".json"


def rescore(cfg: DictConfig, path: Path) -> Report:
    """Nothing can be decided again, as such files hold no evidence; but they can be scored by every protocol that needs no model."""
    found = importers.read_results(path)
    with run_folder(cfg, mode="replay") as folder:
        write_rows(folder, map(records.to_row, found.predictions))
        write_json(folder / importers.MARK, {"from": str(path), "kind": found.kind, "claimed": found.claimed, "notes": list(found.notes)})
        right = sum(prediction.correct is True for prediction in found.predictions) / len(found.predictions)
        claim = (
            [] if found.claimed is None else [f"the file claims an accuracy of {found.claimed:.3f}; by class identity it is {right:.3f}"]
        )
        report = reports.make_report(
            found.predictions,
            classes=found.classes,
            dataset=path.name,
            trigger=found.kind,
            notes=(f"imported from {path} ({found.kind})", *claim, *found.notes),
            model_loads={"mllm": 0, "encoder": 0, "joint": 0},
            path=folder,
            config=assembly.to_dict(cfg),
            measure=tuple(cfg.evaluation.protocols),
        )
        reports.write(report, folder)
        return report
