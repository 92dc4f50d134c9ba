"""The recognizer of a configuration: all its parts, put together."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np

from fgvr.agents.answer_fusion import LogLinearFusion, Reprompt, fit_weight
from fgvr.agents.calibration import ONE_SHOT, Abstainer, Calibrated, Calibrator, Deferred, Evidence, fit_abstention
from fgvr.agents.fast import Retrieval
from fgvr.agents.fusion import Fusion
from fgvr.agents.joint import JointRetrieval, Matcher
from fgvr.agents.leave_one_out import Answers, LeaveOneOutAnswers, fusion_cases, leave_one_out_fast, leave_one_out_joint
from fgvr.agents.online import OnlineRetrieval
from fgvr.agents.risk_control import RiskGuarantee
from fgvr.agents.slow import Exemplars, Shortlist, SlowThinking
from fgvr.agents.trigger import Always, decide
from fgvr.config.configuration import ORACLE
from fgvr.config.factories import instantiate
from fgvr.data.pictures import deferred_images, open_picture
from fgvr.errors import ConfigError
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.knowledge.experience import Library
from fgvr.knowledge.prototypes import index_within_class
from fgvr.pipeline import Recognizer
from fgvr.protocols import FastThinker, SlowThinker, Trigger, reads_text
from fgvr.session.with_knowledge import WithKnowledge
from fgvr.types import Prediction, SlowResult
from fgvr.utils.batches import chunks


class Session(WithKnowledge):
    """Everything that one configuration means. Holds handles only: weights come with the first image."""

    # --- System 1

    @cached_property
    def fusion(self) -> Fusion:
        return instantiate(self.config.fusion, "fusion", Fusion)

    @cached_property
    def matcher(self) -> Matcher | None:
        """The joint encoder over this base's descriptions; None where the fusion does not ask for it. Loads nothing."""
        if self.fusion.joint and "joint" not in self.config.models.present:
            raise ConfigError(
                f"fusion.joint={self.fusion.joint} asks a joint encoder, and this configuration has none: write models/joint=NAME"
            )
        return Matcher(self.joint, self.knowledge.records, fusion=self.fusion) if self.fusion.joint else None

    @cached_property
    def left_out(self) -> LeaveOneOutAnswers:
        """System 1's leave-one-out answers on the support images; computed on first use, because a matcher needs its model."""
        known, hashes = self.knowledge.prototypes, [support.sha256 for support in self.knowledge.support]

        def compute() -> Answers:
            results, statistics = leave_one_out_fast(known, hashes, fusion=self.fusion)
            if self.matcher is None:
                return results, statistics
            size = self.config.evaluation.batch_size
            return leave_one_out_joint(results, known, self.support_pictures, self.matcher, batch_size=size, each=self.engine.map)

        return LeaveOneOutAnswers(compute)

    @cached_property
    def fast(self) -> FastThinker:
        base, matcher = self.knowledge, self.matcher
        statistics = self.left_out()[1] if matcher is None else base.statistics
        retrieval = Retrieval(self.encoder, base.prototypes, statistics, fusion=self.fusion)
        return retrieval if matcher is None else JointRetrieval(retrieval, matcher, lambda: self.left_out()[1])

    @cached_property
    def learner(self) -> OnlineRetrieval | None:
        """System 1 where it learns while it runs."""
        if (kind := self.config.learning) is None:
            return None
        return OnlineRetrieval(self.encoder, self.knowledge.prototypes, self.left_out()[1], fusion=self.fusion, kind=kind)

    # --- the trigger

    @cached_property
    def policy(self) -> Any:
        """The trigger group's object: a Trigger, or one that has to learn (Calibrator) or to know the truth (Oracle) first."""
        return instantiate(self.config.trigger, "trigger", Trigger, Calibrator, Oracle)

    @cached_property
    def trigger(self) -> Trigger:
        """The policy, ready to decide: fitted on what the base knows and, for a promise, on images it has not met."""
        chosen = self.policy
        if isinstance(chosen, Oracle):
            return Always()  # the oracle speaks afterwards, in the evaluation
        if not isinstance(chosen, Calibrator):
            return chosen
        known = self.knowledge.prototypes
        # The k-th image of every class is judged by what has seen none of them.
        groups = index_within_class(known.owners.tolist(), known.families)
        guaranteed = chosen.target.kind == "risk"

        def fit() -> Calibrated:
            results, _ = self.left_out()
            right = [result.top.category == known.ids[owner] for result, owner in zip(results, known.owners, strict=True)]
            return chosen.fit(Evidence(results, right), groups, self._calibration_evidence() if guaranteed else None)

        return Deferred(fit) if guaranteed or self.config.fusion.joint else fit()

    def _calibration_evidence(self) -> Evidence | None:
        """System 1 on the calibration images; None where the dataset sets none aside."""
        samples = self.calibration
        if not samples:
            return None
        batches, fast = chunks(samples, self.config.evaluation.batch_size), self.fast
        judged = self.engine.map(lambda batch: fast([self.engine.look(sample) for sample in batch]), batches)
        results = [result for some in judged for result in some]
        return Evidence(results, [result.top.category == sample.label for result, sample in zip(results, samples, strict=True)])

    def check_trigger(self) -> None:
        """What can be known before a base is built. Raises ConfigError."""
        config, chosen = self.config, self.policy
        if isinstance(chosen, Calibrator) and config.dataset.shots == 1 and config.knowledge.path is None:
            judged_elsewhere = chosen.target.kind == "risk" and chosen.form == "joint" and config.dataset.calibration > 0
            if not judged_elsewhere:
                raise ConfigError(ONE_SHOT)

    # --- System 2

    @cached_property
    def shortlist(self) -> Shortlist:
        """The candidates of a question, with a support picture beside each where `slow.exemplars` asks for them."""
        known, exemplar = self.knowledge.prototypes, None
        if self.config.slow.exemplars:
            support = self.support
            exemplar = Exemplars(known.ids, known.owners.tolist(), known.folds.tolist(), lambda i: self.engine.look(support[i]))
        return Shortlist(self.knowledge.records, candidates=self.config.slow.candidates, exemplar=exemplar)

    @cached_property
    def slow(self) -> SlowThinker | None:
        """System 2; None where it is nobody (`slow=none`): doubtful images then keep System 1's answer and are unsure."""
        if not self.config.asks_mllm:
            return None
        decoder = self.decoder(self.knowledge.classes[0].superclass)
        library = Library(self.knowledge.experience, most=self.config.slow.rules)
        slow = SlowThinking(decoder, self.shortlist, library, wide=self.config.evaluation.record == "all")
        return Reprompt(slow, decoder, self.shortlist) if self.config.slow.answer_fusion == "mllm" else slow

    @cached_property
    def answer_fusion(self) -> LogLinearFusion:
        """System 2's answer with System 1's; its weight is given, or fitted on leave-one-out answers when first needed."""
        weight, base = self.config.slow.weight, self.knowledge
        if self.config.slow.answer_fusion in ("slow", "mllm"):
            return LogLinearFusion(weight=1.0)
        if weight != "fitted":
            return LogLinearFusion(weight=float(weight))
        return LogLinearFusion(weight=lambda: fit_weight(fusion_cases(self.left_out()[0], base.prototypes, base.slow_scores)))

    # --- the whole

    @cached_property
    def recognizer(self) -> Recognizer:
        """For an evaluation. With trigger=oracle it thinks about all; who knows the labels has the last word (`Oracle.redecide`)."""
        self.check_trigger()
        if self.config.thinks:
            self.check_decoder()
        whole = partial(
            Recognizer,
            look=open_picture,
            deferred_images=partial(deferred_images, self.encoder.known_images),
            fast=self.learner or self.fast,
            learn=self.learner.learn if self.learner else None,
            trigger=self.trigger,
            slow=self.slow,
            answer_fusion=self.answer_fusion,
            names={record.id: record.name for record in self.knowledge.classes},
            batch_size=self.config.evaluation.batch_size,
            at_once=len(self.pool.members),
        )
        abstainer = self._abstainer(whole)
        blind = f"System 1 looks at images alone: {self.config.models.encoder.source} reads no text"
        trigger, joint = self.trigger, f"System 1 asks the joint encoder {self.config.models.joint.source} ({self.fusion.joint})"
        return whole(
            abstain=abstainer,
            remarks=lambda: [
                *([f"trigger {trigger.expectation}"] if isinstance(trigger, Calibrated | Deferred) else []),
                *([joint] if self.matcher is not None else []),
                *([] if reads_text(self.encoder) else [blind]),
                *([f"final answers: {abstainer.guarantee}"] if abstainer is not None else []),
            ],
            record_all=self.config.evaluation.record == "all",
        )

    def recognizer_of_pictures(self) -> Recognizer:
        """For any picture, hence trigger=oracle, which needs labels, is a ConfigError."""
        if isinstance(self.policy, Oracle):
            raise ConfigError(ORACLE)
        return self.recognizer

    def _abstainer(self, whole: partial[Recognizer]) -> Abstainer | None:
        """What withholds uncertain answers; None where `trigger.abstain` does not ask for it. Asks no model before the first answer."""
        chosen, base, fusion = self.policy, self.knowledge, self.answer_fusion
        if not isinstance(chosen, Calibrator) or chosen.abstain is None:
            return None
        target, form = chosen.abstain, chosen.form

        def fit() -> RiskGuarantee:
            if not self.calibration:
                raise ConfigError(
                    "trigger.abstain is guaranteed on images set aside, and this dataset has none: write dataset.calibration=4"
                )
            # Before their labels are seen: how certain this recognizer is of the support images, left out.
            cases = fusion_cases(self.left_out()[0], base.prototypes, base.slow_scores)
            decisions = decide(self.trigger, [fast for fast, _, _ in cases])
            sure = [fusion(f, SlowResult(None, s))[1] if d.escalate else d.score for (f, s, _), d in zip(cases, decisions, strict=True)]
            expected = np.array(sure) if sure else np.linspace(0, 1, 101)
            answers: list[Prediction] = whole().batch(self.calibration)
            return fit_abstention(answers, epsilon=target.value, delta=target.delta, form=form, expected=expected)

        return Abstainer(fit)
