"""One function per mode. Each reads like the abstract of what it does; objects come from assembly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from fgvr import assembly
from fgvr.errors import FgvrError
from fgvr.modes.building import build_experience_base, build_knowledge_base, fit
from fgvr.modes.checking import MEMORY_ACTIONS, Checkup, MemoryAnswer, cache, doctor, memory, plan
from fgvr.modes.classifying import classify
from fgvr.modes.comparing_baselines import Baselines, baselines
from fgvr.modes.discovering import Discovery
from fgvr.modes.discovering import discover as _discover  # of a configuration; the public one takes a folder
from fgvr.modes.discovering import discover_folder as discover
from fgvr.modes.evaluating import evaluate
from fgvr.modes.fetching import fetch
from fgvr.modes.review import Reviewed, review
from fgvr.modes.reviewing import compare, replay
from fgvr.modes.runs import BASE, CONFIG, LESSONS, LOG, PREDICTIONS, recorded_memory, run_folder
from fgvr.modes.serving import serve
from fgvr.modes.showing import show
from fgvr.utils.logging import own_terminal, setup_logging

__all__ = [
    "BASE",
    "CONFIG",
    "LESSONS",
    "LOG",
    "MEMORY_ACTIONS",
    "MODES",
    "PREDICTIONS",
    "Baselines",
    "Checkup",
    "Discovery",
    "MemoryAnswer",
    "Reviewed",
    "baselines",
    "build_experience_base",
    "build_knowledge_base",
    "cache",
    "classify",
    "compare",
    "discover",
    "doctor",
    "evaluate",
    "fetch",
    "fit",
    "memory",
    "plan",
    "recorded_memory",
    "replay",
    "review",
    "run",
    "run_folder",
    "serve",
    "show",
]

MODES: dict[str, Callable[[DictConfig], Any]] = {
    "baselines": baselines,
    "build_knowledge_base": build_knowledge_base,
    "build_experience_base": build_experience_base,
    "cache": cache,
    "classify": classify,
    "compare": compare,
    "discover": _discover,
    "doctor": doctor,
    "evaluate": evaluate,
    "fetch": fetch,
    # Presets: the same function; the configuration pins the trigger.
    "fastonly": evaluate,
    "slowonly": evaluate,
    "fast_slow": evaluate,
    "memory": memory,
    "plan": plan,
    "replay": replay,
    "review": review,
    "serve": serve,
}


def run(cfg: DictConfig) -> Any:
    """What the command line calls: check, do, show."""
    own_terminal()
    cfg = assembly.validate(cfg)
    setup_logging(level=cfg.logging.level, quiet=cfg.logging.quiet)
    result = MODES[cfg.mode](cfg)
    show(result, cfg)
    if isinstance(result, Checkup) and result.ill:
        topics = ", ".join(finding.topic for finding in result.ill)
        raise FgvrError(f"{len(result.ill)} of {len(result.findings)} checks found something to mend: {topics}")
    return result
