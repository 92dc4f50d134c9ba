"""The baselines: what each changes in the configuration, and by what rule it ranks where that is not the pipeline's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fgvr.agents import baselines, prompts
from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.data.pictures import open_picture
from fgvr.errors import ConfigError
from fgvr.knowledge.prototypes import unit
from fgvr.pipeline import Recognizer
from fgvr.protocols import reads_text
from fgvr.session import Session
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
"""What each one changes in the configuration."""
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


def chosen_baselines(session: Session) -> list[str]:
    """Those asked for, and the configuration itself last."""
    which, known, without = session.config.baselines.which, [name for name in SETTINGS if name != OURS], unavailable_baselines(session)
    names = [name for name in known if name not in without] if which == "all" else [which] if isinstance(which, str) else which
    if absent := [f"{name} ({without[name]})" for name in names if name in without]:
        raise ConfigError(f"baselines.which={which}: this configuration cannot run {', '.join(absent)}")
    if not names or not set(names) <= set(known):
        raise ConfigError(f"baselines.which={which}: must be all, or some of {', '.join(known)}")
    return [*dict.fromkeys(names), OURS]


def unavailable_baselines(session: Session) -> dict[str, str]:
    """Baselines that need a model which is not there, each with what is missing."""
    config, found = session.config, {}
    if not reads_text(session.encoder):
        found |= dict.fromkeys(("zero_shot", "text_prototypes", "fused_prototypes"), f"{config.models.encoder.source} reads no text")
    if not config.asks_mllm or "mllm" not in config.models.present:
        found |= dict.fromkeys(("mllm", "mllm_topk"), f"slow={config.slow.decoder} asks no MLLM")
    if "mllm" not in config.models.present:
        found["text_prototypes"] = "no MLLM writes descriptions"
    return found


def baseline_session(session: Session, name: str) -> Session:
    """With the settings of one baseline; its run lies below `runs/baselines/`."""
    if name == OURS:
        return session.derive({"mode": "baselines/ours"})
    return session.derive({"mode": f"baselines/{name.replace(' ', '_')}", "online": "off", **SETTINGS[name]})


def baseline_recognizer(name: str) -> Callable[[Session], Recognizer] | None:
    """How to build the recognizer of a baseline that ranks by a rule; None: it is the pipeline's own."""
    return partial(_ranking, name) if name in _RULES else None


_RULES = ("zero_shot", "knn", "cache", "linear_probe")


def _ranking(name: str, session: Session) -> Recognizer:
    notes = []
    if name == "zero_shot" and not session.config.models.name_prompts:
        notes = ["zero-shot with an encoder that has never read these names: chance is what to expect"]
    base = session.knowledge
    return Recognizer(
        look=open_picture,
        fast=baselines.Ranking(session.encoder, base.prototypes.ids, _rule(name, session)),
        trigger=session.trigger,
        slow=_nobody,
        answer_fusion=LogLinearFusion(weight=0.0),
        names={record.id: record.name for record in base.classes},
        notes=lambda: notes,
        batch_size=session.config.evaluation.batch_size,
    )


def _rule(name: str, session: Session) -> baselines.Rule:
    known, config, encoder = session.knowledge.prototypes, session.config, session.encoder
    if name == "knn":
        return baselines.nearest(known, config.baselines.neighbours)
    if name == "linear_probe":
        return baselines.linear_probe(known, config.seed)
    if name == "cache" and not (config.models.name_prompts and reads_text(encoder)):
        return baselines.cache(known, known.text)  # what this encoder can read; zero vectors where it reads nothing
    prompted = [prompts.name_prompts(record.name, record.superclass) for record in session.knowledge.classes]
    names = np.stack([encoder.encode_text(list(texts)).mean(axis=0) for texts in prompted])
    return baselines.cache(known, unit(names)) if name == "cache" else baselines.by_text(unit(names), known.temperature)


def _nobody(pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]:
    raise AssertionError("a baseline of System 1 asks no MLLM")
