"""mode=baselines: each baseline as a configuration, and as a recognizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fgvr.agents import baselines, prompts
from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.agents.trigger import Never
from fgvr.assembly.configuration import to_dict
from fgvr.assembly.models import asks_mllm, open_models, open_store
from fgvr.assembly.recognizer import build_evaluated
from fgvr.data.pictures import open_picture
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.prototypes import unit
from fgvr.pipeline import Recognizer
from fgvr.protocols import Encoder, reads_text
from fgvr.store.cache import NoCache
from fgvr.types import FastResult, Picture, SlowResult

OURS = "this configuration"
_NEVER, _ALWAYS = ({"_target_": f"fgvr.agents.trigger.{name}"} for name in ("Never", "Always"))
_ALONE = {"trigger": _ALWAYS, "slow.arbitrate": "slow"}
SETTINGS: dict[str, dict[str, object]] = {
    "zero_shot": {"trigger": _NEVER},
    "image_prototypes": {"trigger": _NEVER, "fusion.image_weight": 1.0, "fusion.classifier": "prototypes"},
    "linear_discriminant": {"trigger": _NEVER, "fusion.image_weight": 1.0, "fusion.classifier": "linear"},
    "text_prototypes": {"trigger": _NEVER, "fusion.image_weight": 0.0, "fusion.name_weight": 0.0},
    "fused_prototypes": {"trigger": _NEVER, "fusion.classifier": "prototypes"},
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
    "linear_discriminant": "shrunken linear discriminant on the shots",
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
    which = to_dict(cfg)["baselines"]["which"]
    without = unavailable_baselines(cfg)
    every = [name for name in SETTINGS if name != OURS and name not in without]
    names = every if which == "all" else [which] if isinstance(which, str) else list(which)
    unknown = [name for name in names if name not in SETTINGS or name == OURS]
    if unknown or not names:
        raise ConfigError(f"baselines.which={which}: must be all, or some of {', '.join(name for name in SETTINGS if name != OURS)}")
    if absent := [f"{name} ({without[name]})" for name in names if name in without]:
        raise ConfigError(f"baselines.which={which}: this configuration cannot run {', '.join(absent)}")
    neighbours = cfg.baselines.neighbours
    if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
        raise ConfigError(f"baselines.neighbours={neighbours}: must be a whole number from 1 up")
    return [*dict.fromkeys(names), OURS]


def unavailable_baselines(cfg: DictConfig) -> dict[str, str]:
    """Baselines that need a model which is not there, each with what is missing."""
    models, found = open_models(cfg, NoCache()), {}
    if not reads_text(models.encoder):
        found |= dict.fromkeys(("zero_shot", "text_prototypes", "fused_prototypes"), f"{cfg.models.encoder.source} reads no text")
    if not asks_mllm(cfg) or "mllm" not in models.present:
        found |= dict.fromkeys(("mllm", "mllm_topk"), f"slow={cfg.slow.decoder} asks no MLLM")
    if "mllm" not in models.present:
        found["text_prototypes"] = "no MLLM writes descriptions"
    return found


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
    if name == "cache" and not (cfg.models.name_prompts and reads_text(encoder)):
        return baselines.cache(known, known.text)  # what this encoder can read; zero vectors where it reads nothing
    prompted = [prompts.name_prompts(record.name, record.superclass) for record in base.classes]
    names = np.stack([encoder.encode_text(list(texts)).mean(axis=0) for texts in prompted])
    return baselines.cache(known, unit(names)) if name == "cache" else baselines.by_text(unit(names), known.temperature)


def _nobody(pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]:
    raise AssertionError("a baseline of System 1 asks no MLLM")
