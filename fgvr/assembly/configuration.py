"""Overrides in, a checked configuration out; and what a configuration says by itself."""

from __future__ import annotations

import json
import pickle
from functools import lru_cache
from typing import Any

from hydra import utils as hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgvr import keys
from fgvr.agents.calibration import Calibrator
from fgvr.agents.online import UpdateKind
from fgvr.assembly import served
from fgvr.errors import ConfigError, FgvrError
from fgvr.evaluation import protocols
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.overrides import compose, explain, tidy
from fgvr.runtime import allocator
from fgvr.runtime.budget import parse_budget, parse_bytes
from fgvr.runtime.pressure import MonitorSettings
from fgvr.utils.files import short_hash

served.register()  # before any configuration is read


def load_config(*overrides: str) -> DictConfig:
    """The configuration of a command, e.g. `load_config("dataset=birds", "trigger=never")`; the same words as on the command line.

    Raises:
        ConfigError: names the valid choices or the nearest keys.
    """
    try:
        cfg = compose("config", tidy(overrides))
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from error
    return validate(cfg)


def validate(cfg: DictConfig) -> DictConfig:
    """The same configuration, if every value in it is valid. Raises ConfigError."""
    values = to_dict(cfg)
    keys.check(values)
    _check_pinned(cfg)
    parse_budget(cfg.runtime.budget, total=1 << 40)
    for name in cfg.evaluation.protocols:
        protocols.get(name)
    MonitorSettings.of(values["runtime"])
    allocator.check(values["runtime"]["allocator"])
    instantiate_cached(cfg.fusion)
    given_weight(cfg)
    learning(cfg)
    if cfg.slow.exemplars and cfg.slow.decoder == "score" and cfg.slow.target == "description":
        raise ConfigError("slow.exemplars=true needs the candidates in the question: write slow.target=name or letter, or slow=reason")
    policy(cfg)
    _refuse_tiny(cfg)
    if cfg.mode == "slowonly" and cfg.slow.decoder == "none":
        raise ConfigError("mode=slowonly asks System 2 about every image, and slow=none has none: choose an MLLM, or write mode=fastonly")
    if cfg.mode in _UNLABELLED:
        refuse_oracle(cfg)
    return cfg


def _refuse_tiny(cfg: DictConfig) -> None:
    """The shipped tiny models have learned rendered birds and nothing else; a replay asks no model."""
    tiny = [role for role in ("encoder", "mllm") if cfg.models[role].source == "tiny"]
    if tiny and not cfg.models.force and cfg.dataset._target_ != _RENDERED and cfg.mode not in ("replay", "compare", "memory", "cache"):
        raise ConfigError(
            f"models=tiny ({' and '.join(tiny)}) knows rendered birds only, and dataset={cfg.dataset.get('name', 'folder')} holds other "
            "images: write models=photos, or models.force=true to see meaningless answers"
        )


_RENDERED = "fgvr.data.datasets.open_birds"
_UNLABELLED = ("classify", "discover", "serve")  # modes whose pictures have no label


def refuse_oracle(cfg: DictConfig) -> None:
    """For pictures whose label nobody knows."""
    if trigger_name(cfg) == Oracle.name:
        raise ConfigError(
            "trigger=oracle decides by the labels, so it exists in evaluations only: write trigger=calibrated, or trigger=always to send "
            "every image to System 2"
        )


def instantiate(node: DictConfig) -> Any:
    """The object a `_target_` leaf stands for; an error of ours, or of the file system, inside it comes out as itself."""
    try:
        return hydra.instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, FgvrError | OSError):
            raise error.__cause__ from None
        raise


def instantiate_cached(node: DictConfig) -> Any:
    """The same for immutable objects: one instance per configuration, because Hydra takes milliseconds and every stage asks."""
    return _instantiate_cached(json.dumps(to_dict(node)))


@lru_cache(maxsize=64)
def _instantiate_cached(node: str) -> Any:
    return instantiate(DictConfig(json.loads(node)))


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy with all interpolations resolved, because each read of one parses it again."""
    copied: DictConfig = pickle.loads(pickle.dumps(cfg))  # in a third of copy.deepcopy's time
    OmegaConf.resolve(copied)
    return copied


def configuration_key(cfg: DictConfig) -> str:
    """12 hex digits over everything that can change a run's results."""
    ignored = ("run", "server", "logging", "paths", "pinned_trigger", "store", "runtime", "published")
    return short_hash({key: value for key, value in to_dict(cfg).items() if key not in ignored})


def policy(cfg: DictConfig) -> Any:
    """The trigger group's object: a Trigger, or one that has to learn (Calibrator) or to know the truth (Oracle) first.

    Shared by all who ask what it is; who lets it decide makes one of his own.
    """
    return instantiate_cached(cfg.trigger)


def trigger_name(cfg: DictConfig) -> str:
    return hydra.get_class(cfg.trigger._target_).name  # type: ignore[attr-defined]


def learning(cfg: DictConfig) -> UpdateKind | None:
    kind = "off" if cfg.online is False else cfg.online  # YAML's own reading of a bare off
    if kind != "off" and isinstance(chosen := policy(cfg), Calibrator) and chosen.target.kind == "risk":
        raise ConfigError(f"online={kind} changes System 1 while it runs, so no risk can be promised: write online=off, or another target")
    if kind != "off" and cfg.fusion.classifier == "linear":
        raise ConfigError(f"online={kind} learns prototypes and their histories: write online=off, or fusion=prototypes")
    if kind != "off" and cfg.fusion.joint:
        raise ConfigError(f"online={kind} learns prototypes and histories of retrieval alone: write online=off, or fusion=prototypes")
    return None if kind == "off" else kind


def store_limit(cfg: DictConfig) -> int | None:
    """Bytes of values the store may hold; None: no limit."""
    return parse_bytes(cfg.store.limit) if isinstance(cfg.store.limit, str) else cfg.store.limit


def given_weight(cfg: DictConfig) -> float | None:
    """The pooling weight a person has set, or None for the fitted one."""
    weight = cfg.slow.weight
    if weight == "fitted":
        if not cfg.knowledge.rehearse and cfg.slow.arbitrate == "pool":
            raise ConfigError("slow.weight=fitted is fitted on what knowledge.rehearse=false leaves out; write slow.weight=0.5, say")
        return None
    return float(weight)


def _check_pinned(cfg: DictConfig) -> None:
    pinned = cfg.get("pinned_trigger")
    given = trigger_name(cfg)
    if pinned and given != pinned:
        raise ConfigError(f"mode={cfg.mode} means trigger={pinned}, but trigger={given} was given; write mode=evaluate trigger={given}")
