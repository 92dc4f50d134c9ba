"""What notebooks call. Each function takes a configuration, or the words of one."""

from pathlib import Path

from fgvr.config.composing import load_config
from fgvr.config.configuration import Config
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.modes import building, discovering, evaluating
from fgvr.modes.discovering import Discovery
from fgvr.pipeline import Recognizer
from fgvr.runtime import pool as pools
from fgvr.runtime.pool import ModelPool
from fgvr.session import Session
from fgvr.types import Report

__all__ = ["load_config", "build_knowledge_base", "build_recognizer", "evaluate", "fit", "discover", "shared_pool"]


def build_knowledge_base(config: Config) -> KnowledgeBase:
    """Support images -> knowledge base. Finished work is never repeated; a complete base is opened as it is."""
    return building.build_knowledge_base(Session(config))


def build_recognizer(config: Config, base: KnowledgeBase | None = None) -> Recognizer:
    """A Recognizer over this configuration's knowledge base. Holds handles only; weights come with the first image.

    For any picture, hence trigger=oracle, which needs labels, is a ConfigError.
    """
    return Session(config, **({} if base is None else {"knowledge": base})).recognizer_of_pictures()


def evaluate(config: Config) -> Report:
    """Recognise the test images and score them. Killed at any point, the same call goes on where it was."""
    return evaluating.evaluate(Session(config))


def fit(folder: str | Path, *overrides: str) -> Recognizer:
    """A recognizer for any folder of class-named folders."""
    session = Session(load_config("dataset=folder", f"dataset.root={folder}", *overrides))
    return session.derive({}, knowledge=building.build_knowledge_base(session)).recognizer_of_pictures()


def discover(folder: str | Path, *overrides: str) -> Discovery:
    """Names for the images of a folder, and a recognizer that knows them; `overrides` as on the command line."""
    return discovering.discover(Session(load_config("mode=discover", f"images={folder}", *overrides)))


def shared_pool(config: Config | None = None) -> ModelPool:
    """The process's one ModelPool, with this configuration's models known under their roles; nothing is loaded."""
    if config is None:
        try:
            return pools.shared()
        except ConfigError:
            config = load_config()
    return Session(config).pool
