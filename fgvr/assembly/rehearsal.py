"""What System 1 says about the support images without having met them: the trigger and the pooling weight are fitted on it."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from fgvr.agents.fusion import Fusion
from fgvr.agents.joint import Matcher, Rehearsed, rehearse_joint
from fgvr.agents.rehearse import rehearse_fast
from fgvr.assembly.configuration import made
from fgvr.assembly.images import look, open_dataset, support_of
from fgvr.assembly.models import Models
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.statistics import Statistics
from fgvr.types import FastResult, Picture


def build_matcher(cfg: DictConfig, base: KnowledgeBase, models: Models) -> Matcher | None:
    """The joint encoder over this base's descriptions; None where the fusion does not ask for it. Loads nothing."""
    fusion: Fusion = made(cfg.fusion)
    return Matcher(models.joint, base.records, fusion=fusion) if fusion.joint else None


def rehearsed(cfg: DictConfig, base: KnowledgeBase, matcher: Matcher | None) -> Rehearsed:
    """Leave-one-out answers of the System 1 that is configured; made when first asked for, since a matcher needs its model."""
    known, hashes = base.prototypes, [support.sha256 for support in base.support]

    def make_them() -> tuple[list[FastResult], Statistics]:
        results, statistics = rehearse_fast(known, hashes, fusion=made(cfg.fusion))
        if matcher is None:
            return results, statistics
        support = support_of(base, open_dataset(cfg).split.support)

        def pictures(indices: Sequence[int]) -> list[Picture]:
            return [look(support[i]) for i in indices]

        owners, folds, size = known.owners.tolist(), known.folds.tolist(), cfg.evaluation.batch_size
        return rehearse_joint(results, known.ids, owners, folds, pictures, matcher, batch_size=size, families=known.families)

    return Rehearsed(make_them)
