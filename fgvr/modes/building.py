"""Modes that build: the knowledge base, its experience."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from fgvr.agents.experience_learning import ExperienceLearner, LearningReport
from fgvr.agents.reflect import Reflector
from fgvr.agents.rule_validation import AcceptanceCriteria, Example
from fgvr.agents.slow import Question, Shortlist
from fgvr.agents.trigger import decide
from fgvr.evaluation.console import knowledge_table
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.build import JOURNAL, workspace
from fgvr.modes.runs import recorded_memory, run_folder
from fgvr.modes.showing import to_json, to_text
from fgvr.runtime import pool as pools
from fgvr.scale import some_files, working
from fgvr.session import Session
from fgvr.store.cache import LayeredCache, SqliteCache
from fgvr.types import FastResult
from fgvr.utils.batches import batches

log = logging.getLogger(__name__)


def build_knowledge_base(session: Session) -> KnowledgeBase:
    """Support images -> knowledge base. Finished work is never repeated; a complete base is opened as it is."""
    with (
        run_folder(session, mode="build_knowledge_base") as folder,
        recorded_memory(session, folder),
        working(session, lambda one: some_files(one.dataset.split.support)) as at_work,
    ):
        return at_work.open_knowledge(building=True)


def build_experience_base(session: Session) -> KnowledgeBase:
    """System 2's failures on the support images -> rules with evidence, added to the base. A base that has rules is shown as it is."""
    base = session.knowledge
    if base.experience and not session.config.run.fresh:
        log.info("%d rules are there already (run.fresh=true learns anew)", len(base.experience))
        return base
    learned, lessons = learn_experience(session)
    log.info("%s", lessons)
    return learned


def learn_experience(session: Session) -> tuple[KnowledgeBase, LearningReport]:
    """The base with rules learned from System 2's failures on its own support images; replaces the base in its place when whole."""
    session.check_decoder()
    folder = session.knowledge.path
    assert folder is not None
    with workspace(folder) as partial, SqliteCache(partial / JOURNAL) as journal:
        started = time.monotonic()
        base = knowledge_base.load(folder)  # somebody may have mended it while this process waited for its turn
        lessons = _learn(session.derive({}, knowledge=base, store=LayeredCache(journal, session.store)))
        learned = replace(base, experience=lessons.rules)
        learned.save(partial, created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.monotonic() - started, 3))
    return knowledge_base.load(folder), lessons


def _learn(session: Session) -> LearningReport:
    config, base = session.config, session.knowledge
    superclass, (results, _) = base.classes[0].superclass, session.left_out()
    doubtful = [i for i, decision in enumerate(decide(session.trigger, results)) if decision.escalate]
    learner = ExperienceLearner(
        decoder=session.decoder(superclass),
        reflector=Reflector(session.mllm, superclass=superclass, max_new_tokens=config.experience.max_new_tokens),
        encoder=session.encoder,
        pictures=session.support_pictures,
        batches=lambda n: batches(n, config.models.mllm.batch_size),
        failures=config.experience.failures,
        alike=config.experience.alike,
        criteria=AcceptanceCriteria(config.experience.level, config.experience.least),
        most=config.slow.rules,
    )
    return learner.learn(_examples(base, results, session.shortlist), doubtful)


def _examples(base: KnowledgeBase, results: Sequence[FastResult], shortlist: Shortlist) -> list[Example]:
    """Every support image whose class System 1 lists leave-one-out, its own class described by words that never saw it."""
    examples = []
    for i, (result, owner, fold) in enumerate(zip(results, base.prototypes.owners, base.prototypes.folds, strict=True)):
        truth = base.prototypes.ids[owner]
        options = tuple(shortlist(result, own=(truth, int(fold))))
        if truth in {option.category for option in options}:
            examples.append(Example(i, int(fold), Question(options), truth, result.sha256))
    return examples


@to_json.register
def _(result: KnowledgeBase) -> dict[str, Any]:
    manifest = asdict(result.manifest) if result.manifest else {}
    return manifest | {"path": str(result.path), "work": asdict(pools.shared().counters.snapshot())}


to_text.register(KnowledgeBase, lambda result: [knowledge_table(result, pools.shared().counters.snapshot())])
