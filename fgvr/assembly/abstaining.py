"""Final answers with abstention: the whole recognizer, asked about the calibration images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from omegaconf import DictConfig

from fgvr.agents.abstain import Abstainer, fit_abstention
from fgvr.agents.answer_fusion import LogLinearFusion
from fgvr.agents.calibration import Calibrator
from fgvr.agents.leave_one_out import LeaveOneOutAnswers, fusion_cases
from fgvr.agents.risk_control import RiskGuarantee
from fgvr.assembly.configuration import learning, policy
from fgvr.assembly.triggers import calibration_samples
from fgvr.errors import ConfigError
from fgvr.knowledge.base import KnowledgeBase
from fgvr.protocols import Trigger
from fgvr.types import Prediction, Sample, SlowResult


def build_abstainer(
    cfg: DictConfig,
    base: KnowledgeBase,
    left_out: LeaveOneOutAnswers,
    trigger: Trigger,
    fusion: LogLinearFusion,
    recognise: Callable[[Sequence[Sample]], list[Prediction]],
) -> Abstainer | None:
    """What withholds uncertain answers; None where `trigger.abstain` does not ask for it. Asks no model before the first answer.

    Args: recognise: the same recognizer, giving every answer.
    """
    chosen = policy(cfg)
    if not isinstance(chosen, Calibrator) or chosen.abstain is None:
        return None
    if learning(cfg):
        raise ConfigError("what a run learns changes its answers, so no risk of theirs can be promised: write online=off")
    target, form = chosen.abstain, chosen.form

    def fit() -> RiskGuarantee:
        samples = calibration_samples(cfg, base)
        if not samples:
            raise ConfigError("trigger.abstain is promised on images set aside, and this dataset has none: write dataset.calibration=4")
        # Before their labels are seen: how certain this recognizer is of the support images, left out.
        cases = fusion_cases(left_out()[0], base.prototypes, base.slow_scores)
        decisions = trigger([fast for fast, _, _ in cases])
        sure = [fusion(f, SlowResult(None, s))[1] if d.escalate else d.score for (f, s, _), d in zip(cases, decisions, strict=True)]
        expected = np.array(sure) if sure else np.linspace(0, 1, 101)
        return fit_abstention(recognise(samples), epsilon=target.value, delta=target.delta, form=form, expected=expected)

    return Abstainer(fit)
