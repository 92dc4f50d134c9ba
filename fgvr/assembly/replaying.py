"""What a recorded run needs to be decided again without any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgvr.agents.calibration import Calibrator
from fgvr.agents.fusion import Fusion
from fgvr.agents.slow import Shortlist
from fgvr.assembly.configuration import instantiate, instantiate_cached, learning, load_config, policy, to_dict, validate
from fgvr.assembly.leave_one_out import leave_one_out_answers
from fgvr.assembly.thinking import build_answer_fusion
from fgvr.assembly.triggers import build_trigger
from fgvr.errors import ConfigError, StoreError
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.evaluation.replay import Replay
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.experience import Library
from fgvr.types import FastResult, Picture

_OBSERVED = (
    "dataset",
    "models",
    "knowledge",
    "online",
    "slow.decoder",
    "slow.target",
    "slow.max_new_tokens",
    "slow.exemplars",
    "slow.votes",
)


_MOVED = {"fgvr.data.field.open_field": "fgvr.data.benchmarks.open_benchmark"}


def open_recorded(path: Path) -> DictConfig:
    """A run's config.yaml; a class that has moved since the run is found at its new place."""
    run: DictConfig = OmegaConf.load(path)  # type: ignore[assignment]
    for node in filter(OmegaConf.is_dict, run.values()):
        if (target := node.get("_target_")) in _MOVED:
            node["_target_"] = _MOVED[target]
    return run


def replayed_config(cfg: DictConfig, recorded: Path) -> DictConfig:
    """This configuration with what a recorded run has observed: its dataset, its models, how its System 2 was asked.

    Args: recorded: the run's config.yaml. A setting of these that was given and is another one is a ConfigError.
    """
    if not recorded.exists():
        raise StoreError(f"no {recorded.name} beside the predictions: a replay needs the whole folder of a run ({recorded.parent})")
    run, default, merged = open_recorded(recorded), load_config("mode=replay", "predictions=-"), cfg.copy()
    for key in _OBSERVED:
        theirs, ours, usual = (_at(to_dict(c), key) for c in (run, cfg, default))
        if theirs is None:  # a run from before there was such a key
            continue
        if _placeless(ours) not in (_placeless(theirs), _placeless(usual)):
            raise ConfigError(
                f"{key} is another one in the recorded run ({recorded}), and a replay cannot change it: leave it out, or run again"
            )
        OmegaConf.update(merged, key, theirs, merge=False, force_add=True)
    return validate(merged)


def build_replay(cfg: DictConfig, recorded: Path, base: KnowledgeBase) -> Replay:
    """What a recognizer of this configuration would decide, over a record. Loads nothing, and needs no device.

    Args: recorded: config.yaml of the recorded run.
    """
    chosen = policy(cfg)
    if isinstance(chosen, Calibrator) and chosen.target.kind == "risk":
        raise ConfigError("a risk is promised on calibration images, which a record does not hold: use mode=evaluate, or another target")
    if isinstance(chosen, Calibrator) and chosen.abstain is not None:
        raise ConfigError("trigger.abstain is promised on calibration images, which a record does not hold: use mode=evaluate")
    if learning(cfg):
        raise ConfigError("a run that learns while it runs cannot be replayed: what it learned depends on its own answers")
    fusion: Fusion = instantiate_cached(cfg.fusion)
    run = open_recorded(recorded)
    before: Fusion = instantiate(run.fusion)
    if fusion.joint or before.joint:
        raise ConfigError("fusion.joint is calibrated on its scores of the support images, which no record holds: run again")
    changed = fusion != before or cfg.slow.candidates != run.slow.candidates
    _check_asked_again(cfg, run, changed=changed)
    left_out = leave_one_out_answers(cfg, base, None)
    return Replay(
        ids=base.prototypes.ids,
        histories=left_out()[1].histories(),
        temperature=base.prototypes.temperature,
        fusion=fusion,
        recorded=before,
        trigger=build_trigger(cfg, base, left_out, _no_eyes),
        oracle=chosen if isinstance(chosen, Oracle) else None,
        shortlist=Shortlist(base.records, candidates=cfg.slow.candidates),
        library=Library(base.experience, most=cfg.slow.rules),
        independent=cfg.slow.decoder == "score" and cfg.slow.target == "description",
        same_shortlists=not changed,
        answer_fusion=build_answer_fusion(cfg, base, left_out),
        names={record.id: record.name for record in base.classes},
    )


def _check_asked_again(cfg: DictConfig, run: DictConfig, *, changed: bool) -> None:
    """`slow.arbitrate=mllm` overwrites System 2's first answer with its last; what it is asked last depends on both systems' answers."""
    ours, theirs = (str(c.slow.arbitrate) for c in (cfg, run))
    if ours != theirs and "mllm" in (ours, theirs):
        raise ConfigError(
            f"slow.arbitrate={ours}, but the run was recorded with slow.arbitrate={theirs}: a replay can neither ask the MLLM again nor "
            f"undo that it was asked. Write slow.arbitrate={theirs}, or run again"
        )
    if ours == "mllm" and changed:
        raise ConfigError(
            "slow.arbitrate=mllm asks again by what both systems answered, so a replay cannot change fusion or slow.candidates: run again"
        )


def _no_eyes(pictures: Sequence[Picture]) -> list[FastResult]:
    raise AssertionError("a replay looks at no picture")


def _at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part)
    return settings


def _placeless(value: Any) -> Any:
    """Without where things lie: a replay opens no image."""
    if isinstance(value, dict):
        return {key: _placeless(item) for key, item in value.items() if key not in ("root", "cache_dir", "path", "build")}
    return value
