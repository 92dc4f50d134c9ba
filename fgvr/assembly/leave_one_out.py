"""System 1's leave-one-out answers on the support images: the trigger and the fusion weight are fitted on them."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from fgvr.agents.fusion import Fusion
from fgvr.agents.joint import Matcher
from fgvr.agents.leave_one_out import LeaveOneOutAnswers, leave_one_out_fast, leave_one_out_joint
from fgvr.assembly.configuration import instantiate_cached
from fgvr.assembly.images import look, open_dataset, support_of
from fgvr.assembly.models import Models
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.statistics import Statistics
from fgvr.types import FastResult, Picture


def build_matcher(cfg: DictConfig, base: KnowledgeBase, models: Models) -> Matcher | None:
    """The joint encoder over this base's descriptions; None where the fusion does not ask for it. Loads nothing."""
    fusion: Fusion = instantiate_cached(cfg.fusion)
    if fusion.joint and "joint" not in models.present:
        raise ConfigError(f"fusion.joint={fusion.joint} asks a joint encoder, and this configuration has none: write models/joint=NAME")
    return Matcher(models.joint, base.records, fusion=fusion) if fusion.joint else None


def leave_one_out_answers(cfg: DictConfig, base: KnowledgeBase, matcher: Matcher | None) -> LeaveOneOutAnswers:
    """Leave-one-out answers of the configured System 1; computed on first use, because a matcher needs its model."""
    known, hashes = base.prototypes, [support.sha256 for support in base.support]

    def compute() -> tuple[list[FastResult], Statistics]:
        results, statistics = leave_one_out_fast(known, hashes, fusion=instantiate_cached(cfg.fusion))
        if matcher is None:
            return results, statistics
        support = support_of(base, open_dataset(cfg).split.support)

        def pictures(indices: Sequence[int]) -> list[Picture]:
            return [look(support[i]) for i in indices]

        return leave_one_out_joint(results, known, pictures, matcher, batch_size=cfg.evaluation.batch_size)

    return LeaveOneOutAnswers(compute)
