"""Hydra's composition, beside whoever else uses Hydra in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.errors import MissingConfigException
from hydra.version import VersionBase
from omegaconf import DictConfig

from fgvr.config import experiments
from fgvr.utils.paths import config_dir

_COMPOSING = threading.RLock()


def composed(words: Sequence[str], tree: Path | None = None) -> DictConfig:
    """The configuration of `tidy` words, its references not resolved. Any thread may ask, and so may a program that uses Hydra itself.

    Hydra keeps its state in globals: what the program around us has put there is there again afterwards.
    """
    if any("experiment" in word for word in words):
        experiments.register()
    with _COMPOSING:
        hydra, version = GlobalHydra.instance(), VersionBase.instance()
        around, base, job = hydra.hydra, version.version_base, JobRuntime.instance().conf.name
        hydra.clear()
        try:
            with initialize_config_dir(str(tree or config_dir()), version_base="1.3"):
                try:
                    return compose("config", list(words))
                except MissingConfigException as error:
                    if not (error.missing_cfg_file or "").startswith("experiment/"):
                        raise
                    experiments.register()  # a file of the user's has asked for one
                    return compose("config", list(words))
        finally:
            GlobalHydra.set_instance(hydra)  # `initialize_config_dir` leaves a copy in its place
            hydra.hydra, version.version_base, JobRuntime.instance().conf.name = around, base, job
