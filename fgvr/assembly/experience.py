"""The experience library, learned from System 2's failures on the support images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from omegaconf import DictConfig

from fgvr.agents.experience_learning import ExperienceLearner, LearningReport
from fgvr.agents.fast import Retrieval
from fgvr.agents.joint import JointRetrieval
from fgvr.agents.reflect import Reflector
from fgvr.agents.rule_validation import AcceptanceCriteria, Example
from fgvr.agents.slow import Question, Shortlist
from fgvr.assembly.configuration import instantiate
from fgvr.assembly.images import look, support_of
from fgvr.assembly.leave_one_out import build_matcher, leave_one_out_answers
from fgvr.assembly.models import open_models, open_store
from fgvr.assembly.thinking import build_decoder, build_exemplars, check_decoder
from fgvr.assembly.triggers import build_trigger
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.build import JOURNAL, batches, workspace
from fgvr.protocols import FastThinker
from fgvr.store.cache import LayeredCache, SqliteCache
from fgvr.types import FastResult, Picture, Sample


def build_experience(cfg: DictConfig, base: KnowledgeBase, samples: Sequence[Sample]) -> tuple[KnowledgeBase, LearningReport]:
    """The base with rules learned from System 2's failures on its own support images; replaces the base in its place when whole.

    Args: samples: the dataset's support images; the base knows them by content.
    """
    check_decoder(cfg)
    folder = base.path
    assert folder is not None
    with workspace(folder) as partial, SqliteCache(partial / JOURNAL) as journal:
        started = time.monotonic()
        base = knowledge_base.load(folder)  # somebody may have mended it while this process waited for its turn
        support = support_of(base, samples)

        def pictures(indices: Sequence[int]) -> list[Picture]:
            return [look(support[i]) for i in indices]

        models = open_models(cfg, LayeredCache(journal, open_store(cfg)))
        matcher = build_matcher(cfg, base, models)
        left_out = leave_one_out_answers(cfg, base, matcher)
        results, statistics = left_out()
        fast: FastThinker = Retrieval(models.encoder, base.prototypes, statistics, fusion=instantiate(cfg.fusion))
        if matcher is not None:
            fast = JointRetrieval(fast, matcher, lambda: statistics)
        doubtful = [i for i, decision in enumerate(build_trigger(cfg, base, left_out, fast)(results)) if decision.escalate]
        learner = ExperienceLearner(
            decoder=build_decoder(cfg, models, base.classes[0].superclass),
            reflector=Reflector(models.mllm, superclass=base.classes[0].superclass, max_new_tokens=cfg.experience.max_new_tokens),
            encoder=models.encoder,
            pictures=pictures,
            batches=lambda n: batches(n, cfg.models.mllm.batch_size),
            failures=cfg.experience.failures,
            alike=cfg.experience.alike,
            criteria=AcceptanceCriteria(cfg.experience.level, cfg.experience.least),
            most=cfg.slow.rules,
        )
        lessons = learner.learn(
            _examples(base, results, Shortlist(base.records, candidates=cfg.slow.candidates, exemplar=build_exemplars(cfg, base, samples))),
            doubtful,
        )
        learned = replace(base, experience=lessons.rules)
        learned.save(partial, created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.monotonic() - started, 3))
    return knowledge_base.load(folder), lessons


def _examples(base: KnowledgeBase, results: Sequence[FastResult], shortlist: Shortlist) -> list[Example]:
    """Every support image whose class System 1 lists leave-one-out, its own class described by words that never saw it."""
    examples = []
    for i, (result, owner, fold) in enumerate(zip(results, base.prototypes.owners, base.prototypes.folds, strict=True)):
        truth = base.prototypes.ids[owner]
        options = tuple(shortlist(result, own=(truth, int(fold))))
        if truth in {option.category for option in options}:
            examples.append(Example(i, int(fold), Question(options), truth, result.sha256))
    return examples
