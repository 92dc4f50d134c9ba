"""The recognizer: all parts put together."""

from __future__ import annotations

from functools import partial

from omegaconf import DictConfig

from fgvr.agents.calibration import Calibrated, Deferred
from fgvr.agents.fast import Retrieval
from fgvr.agents.fusion import Fusion
from fgvr.agents.joint import JointRetrieval
from fgvr.agents.online import OnlineRetrieval
from fgvr.assembly.abstaining import build_abstainer
from fgvr.assembly.configuration import instantiate_cached, learning, refuse_oracle
from fgvr.assembly.knowledge import open_knowledge
from fgvr.assembly.leave_one_out import build_matcher, leave_one_out_answers
from fgvr.assembly.models import open_models, open_store, thinks
from fgvr.assembly.thinking import build_answer_fusion, build_slow, check_decoder
from fgvr.assembly.triggers import build_trigger, check_trigger
from fgvr.data.pictures import deferred_images, open_picture
from fgvr.knowledge.base import KnowledgeBase
from fgvr.pipeline import Recognizer
from fgvr.protocols import FastThinker, reads_text


def build_recognizer(cfg: DictConfig, base: KnowledgeBase | None = None) -> Recognizer:
    """A Recognizer over this configuration's knowledge base. Holds handles only; weights come with the first image.

    For any picture, hence trigger=oracle, which needs labels, is a ConfigError.
    """
    refuse_oracle(cfg)
    return build_evaluated(cfg, base)


def build_evaluated(cfg: DictConfig, base: KnowledgeBase | None = None) -> Recognizer:
    """The same for an evaluation. With trigger=oracle it thinks about all; who knows the labels has the last word (`Oracle.redecide`)."""
    check_trigger(cfg)
    if thinks(cfg):
        check_decoder(cfg)
    base = base or open_knowledge(cfg)
    models = open_models(cfg, open_store(cfg))
    fusion: Fusion = instantiate_cached(cfg.fusion)
    matcher = build_matcher(cfg, base, models)
    left_out = leave_one_out_answers(cfg, base, matcher)
    slow = build_slow(cfg, base, models)
    statistics = left_out()[1] if matcher is None else base.statistics
    retrieval: FastThinker = Retrieval(models.encoder, base.prototypes, statistics, fusion=fusion)
    if matcher is not None:
        retrieval = JointRetrieval(retrieval, matcher, lambda: left_out()[1])
    online = learning(cfg)
    learner = OnlineRetrieval(models.encoder, base.prototypes, statistics, fusion=fusion, kind=online) if online else None
    trigger = build_trigger(cfg, base, left_out, retrieval)
    answer_fusion = build_answer_fusion(cfg, base, left_out)
    whole = partial(
        Recognizer,
        look=open_picture,
        deferred_images=partial(deferred_images, models.encoder.known_images),
        fast=learner or retrieval,
        learn=learner.learn if learner else None,
        trigger=trigger,
        slow=slow,
        answer_fusion=answer_fusion,
        names={record.id: record.name for record in base.classes},
        batch_size=cfg.evaluation.batch_size,
    )
    abstainer = build_abstainer(cfg, base, left_out, trigger, answer_fusion, lambda samples: whole().batch(samples))
    return whole(
        abstain=abstainer,
        notes=lambda: [
            *([f"trigger {trigger.expectation}"] if isinstance(trigger, Calibrated | Deferred) else []),
            *([f"System 1 asks the joint encoder {cfg.models.joint.source} ({fusion.joint})"] if matcher is not None else []),
            *([] if reads_text(models.encoder) else [f"System 1 looks at images alone: {cfg.models.encoder.source} reads no text"]),
            *([f"final answers: {abstainer.guarantee}"] if abstainer is not None else []),
        ],
        record_all=cfg.evaluation.record == "all",
    )
