"""Words -> configuration, by Hydra. The only place that reads the tree of configurations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgvr.config import served
from fgvr.config.hydra_tree import composed
from fgvr.config.overrides import FORMER_VALUES, RENAMED, explain, tidy
from fgvr.errors import ConfigError, FgvrError, causes
from fgvr.utils.paths import config_dir

if TYPE_CHECKING:
    from fgvr.config.configuration import Config

served.register()  # before any configuration is read


def load_config(*overrides: str) -> Config:
    """The configuration of a command, e.g. `load_config("dataset=birds", "trigger=never")`; the same words as on the command line.

    Raises:
        ConfigError: names the valid choices, the nearest keys, or a line for each wrong value.
        RemoteError: of `models=remote`, when its server does not answer.
    """
    try:
        return resolved(composed(tidy(overrides)), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, overrides) from error


def resolved(cfg: DictConfig, words: Sequence[str]) -> Config:
    """What Hydra has composed, checked. Raises ConfigError, RemoteError, and OmegaConf's errors for a value that is missing."""
    from fgvr.config.configuration import Config  # brings pydantic, which a wrong key does not need

    return Config.of(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True), words)  # type: ignore[arg-type]


def explained(error: BaseException, overrides: Sequence[str]) -> FgvrError:
    """An error of Hydra's or OmegaConf's in our words; what a resolver of ours has raised, as itself."""
    ours = (cause for cause in causes(error) if isinstance(cause, FgvrError))
    return next(ours, None) or ConfigError(explain(error, overrides))


def sweep_folder() -> Path | None:
    """Where this job of a sweep of ours belongs, below `paths.home`. A program around us may use Hydra itself, and sweep: its jobs are its
    own."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or all(source.path != str(config_dir()) for source in hydra.runtime.config_sources):
        return None
    return Path("sweeps", os.environ.get("FGVR_SWEEP", "sweep"), str(hydra.job.num))


def to_yaml(config: Config) -> str:
    """As `config.yaml` of a run has it."""
    return OmegaConf.to_yaml(OmegaConf.create(config.to_dict()))


_MOVED = {"fgvr.data.field.open_field": "fgvr.data.benchmarks.open_benchmark"}


def recorded_config(path: Path) -> Config:
    """The `config.yaml` of a run, also of a former version: it lacks keys that came later, and names what has moved since."""
    from fgvr.config.configuration import Config

    run: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[assignment]
    values = {key: value for key, value in run.items() if key in Config.model_fields}
    values.get("models", {}).setdefault("force", True)  # it has used them already
    for (section, _, former), (_, _, name) in ((old.partition("."), new.partition(".")) for old, new in RENAMED.items()):
        if former in (group := values.get(section, {})):
            value = group.pop(former)
            group[name] = FORMER_VALUES.get((f"{section}.{former}", value), value)
    for key, usual in load_config("mode=evaluate").to_dict().items():
        former = values.setdefault(key, usual)
        if isinstance(usual, dict) and "_target_" not in usual and key != "server":
            values[key] = {name: former.get(name, value) for name, value in usual.items()}
        elif isinstance(former, dict) and former.get("_target_") in _MOVED:
            former["_target_"] = _MOVED[former["_target_"]]
    return Config.of(values)
