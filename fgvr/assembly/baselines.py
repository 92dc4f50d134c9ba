"""mode=baselines: each baseline as a configuration, and as a recognizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fgvr.agents import baselines, prompts
from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.agents.trigger import Never
from fgvr.assembly.configuration import plain
from fgvr.assembly.models import open_models, open_store
from fgvr.assembly.recognizer import build_evaluated
from fgvr.data.pictures import open_picture
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.prototypes import unit
from fgvr.pipeline import Recognizer
from fgvr.protocols import Encoder
from fgvr.types import FastResult, Picture, SlowResult

OURS = "this configuration"
_NEVER, _ALWAYS = ({"_target_": f"fgvr.agents.trigger.{name}"} for name in ("Never", "Always"))
_ALONE = {"trigger": _ALWAYS, "slow.arbitrate": "slow"}
SETTINGS: dict[str, dict[str, object]] = {
    "zero_shot": {"trigger": _NEVER},
    "image_prototypes": {"trigger": _NEVER, "fusion.image_weight": 1.0},
    "text_prototypes": {"trigger": _NEVER, "fusion.image_weight": 0.0, "fusion.name_weight": 0.0},
    "fused_prototypes": {"trigger": _NEVER},
    "knn": {"trigger": _NEVER},
    "cache": {"trigger": _NEVER},
    "linear_probe": {"trigger": _NEVER},
    "mllm": {**_ALONE, "slow.candidates": "all"},
    "mllm_topk": _ALONE,
    OURS: {},
}
"""What each one changes in the configuration; by what rule it ranks, where it is not the pipeline's own, stands in `_rule`."""
TITLES = {
    "zero_shot": "zero-shot: image against class-name prompts",
    "image_prototypes": "image prototypes: mean of the shots",
    "text_prototypes": "text prototypes: the MLLM's descriptions",
    "fused_prototypes": "fused prototypes: System 1",
    "knn": "k nearest shots",
    "cache": "cache of shots beside text, untrained (Tip-Adapter)",
    "linear_probe": "linear probe on the shots",
    "mllm": "MLLM alone, over all classes",
    "mllm_topk": "MLLM alone, over System 1's shortlist",
    OURS: "this configuration",
}


def chosen_baselines(cfg: DictConfig) -> list[str]:
    """Those asked for, and the configuration itself last."""
    which = plain(cfg)["baselines"]["which"]
    names = [name for name in SETTINGS if name != OURS] if which == "all" else [which] if isinstance(which, str) else list(which)
    unknown = [name for name in names if name not in SETTINGS or name == OURS]
    if unknown or not names:
        raise ConfigError(f"baselines.which={which}: must be all, or some of {', '.join(name for name in SETTINGS if name != OURS)}")
    neighbours = cfg.baselines.neighbours
    if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
        raise ConfigError(f"baselines.neighbours={neighbours}: must be a whole number from 1 up")
    return [*dict.fromkeys(names), OURS]


def baseline_config(cfg: DictConfig, name: str) -> DictConfig:
    """The configuration of one baseline; its run lies below `runs/baselines/`."""
    settings = {"mode": f"baselines/{name.replace(' ', '_')}", "online": "off"} if name != OURS else {"mode": "baselines/ours"}
    variant = cfg.copy()
    for key, value in {**settings, **SETTINGS[name]}.items():
        OmegaConf.update(variant, key, value, merge=False, force_add=True)
    return variant


def baseline_recognizer(name: str) -> Callable[[DictConfig, KnowledgeBase], Recognizer]:
    """How to build its recognizer: the pipeline's own, or one that ranks by a rule and never thinks slowly."""
    if name not in ("zero_shot", "knn", "cache", "linear_probe"):
        return build_evaluated

    def build(cfg: DictConfig, base: KnowledgeBase) -> Recognizer:
        encoder = open_models(cfg, open_store(cfg)).encoder
        notes = []
        if name == "zero_shot" and not cfg.models.name_prompts:
            notes = ["zero-shot with an encoder that has never read these names: chance is what to expect"]
        return Recognizer(
            look=open_picture,
            fast=baselines.Ranking(encoder, base.prototypes.ids, _rule(name, cfg, base, encoder)),
            trigger=Never(),
            slow=_nobody,
            answer_fusion=LogLinearFusion(weight=0.0),
            names={record.id: record.name for record in base.classes},
            notes=lambda: notes,
            batch_size=cfg.evaluation.batch_size,
        )

    return build


def _rule(name: str, cfg: DictConfig, base: KnowledgeBase, encoder: Encoder) -> baselines.Rule:
    known = base.prototypes
    if name == "knn":
        return baselines.nearest(known, cfg.baselines.neighbours)
    if name == "linear_probe":
        return baselines.linear_probe(known, cfg.seed)
    if name == "cache" and not cfg.models.name_prompts:
        return baselines.cache(known, known.text)  # what this encoder can read
    prompted = [prompts.name_prompts(record.name, record.superclass) for record in base.classes]
    names = np.stack([encoder.encode_text(list(texts)).mean(axis=0) for texts in prompted])
    return baselines.cache(known, unit(names)) if name == "cache" else baselines.by_text(unit(names), known.temperature)


def _nobody(pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]:
    raise AssertionError("a baseline of System 1 asks no MLLM")
