"""The trigger, fitted on what the base knows and, for a promise, on images it has not met."""

from __future__ import annotations

from omegaconf import DictConfig

from fgvr.agents.calibration import ONE_SHOT, Calibrated, Calibrator, Deferred, Evidence
from fgvr.agents.leave_one_out import LeaveOneOutAnswers
from fgvr.agents.trigger import Always
from fgvr.assembly.configuration import instantiate, policy
from fgvr.assembly.images import look, open_dataset, perceptual_hash
from fgvr.data.leaks import without_near_copies
from fgvr.errors import ConfigError
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.prototypes import index_within_class
from fgvr.pipeline import chunks
from fgvr.protocols import FastThinker, Trigger
from fgvr.types import Sample


def build_trigger(cfg: DictConfig, base: KnowledgeBase, left_out: LeaveOneOutAnswers, fast: FastThinker) -> Trigger:
    """The configured policy, ready to decide; `left_out` are System 1's leave-one-out answers on the support images."""
    chosen = instantiate(cfg.trigger)
    if isinstance(chosen, Oracle):
        return Always()  # the oracle speaks afterwards, in the evaluation
    if not isinstance(chosen, Calibrator):
        return chosen
    owners = base.prototypes.owners
    groups = index_within_class(
        owners.tolist(), base.prototypes.families
    )  # the k-th image of every class: judged by what has seen none of them
    guaranteed = chosen.target.kind == "risk"

    def fit() -> Calibrated:
        results, _ = left_out()
        right = [result.top.category == base.prototypes.ids[owner] for result, owner in zip(results, owners, strict=True)]
        return chosen.fit(Evidence(results, right), groups, _calibration(cfg, base, fast) if guaranteed else None)

    return Deferred(fit) if guaranteed or cfg.fusion.joint else fit()


def check_trigger(cfg: DictConfig) -> None:
    """What can be known before a base is built. Raises ConfigError."""
    chosen = policy(cfg)
    if isinstance(chosen, Calibrator) and cfg.dataset.shots == 1 and cfg.knowledge.path is None:
        judged_elsewhere = chosen.target.kind == "risk" and chosen.form == "joint" and cfg.dataset.calibration > 0
        if not judged_elsewhere:
            raise ConfigError(ONE_SHOT)


def calibration_samples(cfg: DictConfig, base: KnowledgeBase) -> list[Sample]:
    """The dataset's calibration images that the base has not met, nor near copies of them."""
    met = {support.sha256 for support in base.support}
    split = open_dataset(cfg).split
    samples = [sample for sample in split.calibration if sample.sha256 not in met]
    return without_near_copies(samples, [sample for sample in split.support if sample.sha256 in met], perceptual_hash(cfg))


def _calibration(cfg: DictConfig, base: KnowledgeBase, fast: FastThinker) -> Evidence | None:
    """System 1 on the calibration images; None where the dataset sets none aside."""
    samples = calibration_samples(cfg, base)
    if not samples:
        return None
    results = [r for batch in chunks(samples, cfg.evaluation.batch_size) for r in fast([look(sample) for sample in batch])]
    return Evidence(results, [result.top.category == sample.label for result, sample in zip(results, samples, strict=True)])
