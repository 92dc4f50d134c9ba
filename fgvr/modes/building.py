"""Modes that build: the knowledge base, its experience."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from fgvr import assembly
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes.runs import recorded_memory, run_folder
from fgvr.pipeline import Recognizer

log = logging.getLogger(__name__)


def build_knowledge_base(cfg: DictConfig) -> KnowledgeBase:
    """Support images -> knowledge base. Finished work is never repeated; a complete base is opened as it is."""
    dataset = assembly.open_dataset(cfg)
    with run_folder(cfg, mode="build_knowledge_base") as folder, recorded_memory(cfg, folder):
        return assembly.open_knowledge(cfg, dataset, building=True)


def build_experience_base(cfg: DictConfig) -> KnowledgeBase:
    """System 2's failures on the support images -> rules with evidence, added to the base. A base that has rules is shown as it is."""
    dataset = assembly.open_dataset(cfg)
    base = assembly.open_knowledge(cfg, dataset)
    if base.experience and not cfg.run.fresh:
        log.info("%d rules are there already (run.fresh=true learns anew)", len(base.experience))
        return base
    learned, lessons = assembly.build_experience(cfg, base, dataset.split.support)
    log.info("%s", lessons)
    return learned


def fit(folder: str | Path, *overrides: str) -> Recognizer:
    """A recognizer for any folder of class-named folders."""
    cfg = assembly.load_config("dataset=folder", f"dataset.root={folder}", *overrides)
    return assembly.build_recognizer(cfg, build_knowledge_base(cfg))
