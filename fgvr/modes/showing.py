"""Results on stdout: for people, or one JSON line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from fgvr import assembly, planning
from fgvr.errors import ConfigError
from fgvr.evaluation import compare as comparing
from fgvr.evaluation import image_gallery, memory_console
from fgvr.evaluation import report as reports
from fgvr.evaluation.records import Recorded, to_row
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes import comparing_baselines
from fgvr.modes.checking import Checkup, MemoryAnswer
from fgvr.modes.comparing_baselines import Baselines
from fgvr.modes.discovering import NAMES, Discovery
from fgvr.modes.fetching import Fetched
from fgvr.modes.review import Reviewed
from fgvr.store.cache_maintenance import MaintenanceReport
from fgvr.types import MemoryPlan, Report
from fgvr.utils.logging import stdout_console


def show(result: Any, cfg: DictConfig) -> None:
    """The result on stdout: for people, or one JSON line (`logging=json`)."""
    if result is None:  # a server has said all it had to say
        return
    if cfg.logging.json:
        text = json.dumps(_as_json(result), ensure_ascii=False, default=str)
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        return
    console = stdout_console(width=120)
    for part in _as_text(result):
        console.print(part)


def _as_json(result: Any) -> Any:
    if isinstance(result, Report):
        return json.loads((result.path / reports.FILE).read_text())
    if isinstance(result, KnowledgeBase):
        manifest = asdict(result.manifest) if result.manifest else {}
        return manifest | {"path": str(result.path), "work": asdict(assembly.shared_pool().counters.snapshot())}
    if isinstance(result, Checkup):
        return asdict(result)
    if isinstance(result, MemoryAnswer):
        return {"action": result.action, "server": result.server} | memory_console.as_json(result.found)
    if isinstance(result, MaintenanceReport):
        return result.as_json()
    if isinstance(result, MemoryPlan):
        return planning.as_record(result)
    if isinstance(result, comparing.Comparison):
        return comparing.to_json(result)
    if isinstance(result, Baselines):
        return comparing_baselines.as_json(result)
    if isinstance(result, Reviewed | Fetched):
        return result.as_json()
    if isinstance(result, Discovery):
        return json.loads((result.path / NAMES).read_text())
    return [to_row(prediction) for prediction in result]


def _as_text(result: Any) -> list[Any]:
    from fgvr.evaluation.console import findings_table, knowledge_table, prediction_tables

    if isinstance(result, Report):
        return [reports.terminal(result)]
    if isinstance(result, KnowledgeBase):
        return [knowledge_table(result, assembly.shared_pool().counters.snapshot())]
    if isinstance(result, Checkup):
        return [findings_table(result.findings)]
    if isinstance(result, MemoryAnswer):
        return memory_console.tables(result.found, result.server)
    if isinstance(result, MemoryPlan | MaintenanceReport):
        return [str(result)]
    if isinstance(result, comparing.Comparison):
        return comparing.tables(result)
    if isinstance(result, Baselines):
        return comparing_baselines.tables(result)
    if isinstance(result, Reviewed | Fetched):
        return result.as_text()
    if isinstance(result, Discovery):
        lines = (
            f"classify others with it: mode=classify image=... knowledge.path={result.base.path}",
            f"{result.path}/{reports.PAGE}",
        )
        return image_gallery.terminal(result.found, result.notes, lines)
    if isinstance(result, Recorded):
        return prediction_tables(result)
    raise ConfigError(f"nothing to show for {type(result).__name__}")
