"""A configuration's knowledge base: found, or built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from fgvr.agents import prompts
from fgvr.agents.describe import Describer
from fgvr.agents.fusion import Fusion
from fgvr.agents.leave_one_out import leave_one_out_fast, leave_one_out_slow
from fgvr.agents.slow import Exemplars, Shortlist
from fgvr.assembly.command import building_command
from fgvr.assembly.images import look, open_dataset, perceptual_hash
from fgvr.assembly.models import Models, asks_mllm, home, looking_ahead, open_models, open_store, spec
from fgvr.assembly.thinking import WRITING, build_decoder, check_decoder
from fgvr.data.datasets import Dataset
from fgvr.data.near_duplicates import duplicate_groups
from fgvr.data.splits import Split
from fgvr.errors import KnowledgeError
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase, Origin
from fgvr.knowledge.build import JOURNAL, BuildComponents, LeaveOneOut, batches, build, workspace
from fgvr.knowledge.classes import ClassRecord
from fgvr.knowledge.leave_one_out import LeaveOneOutScores
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.statistics import Statistics
from fgvr.protocols import reads_text
from fgvr.store.cache import LayeredCache, NoCache, SqliteCache
from fgvr.types import Category, Experience, ModelSpec, Picture
from fgvr.utils.files import short_hash
from fgvr.utils.pieces import pieces

log = logging.getLogger(__name__)


def open_knowledge(cfg: DictConfig, dataset: Dataset | None = None, *, building: bool = False) -> KnowledgeBase:
    """The base this configuration means: found by its key, or at `knowledge.path`; built when missing and allowed.

    Args:
        building: the command is there to build (mode=build_knowledge_base): it does so at `knowledge.path`, too, where others only
            look, and once more when the base found has classes whose description failed.

    Raises:
        KnowledgeError: absent and not to be built here, made by other models, or `knowledge.path` holds something else.
    """
    dataset = dataset or open_dataset(cfg)
    origin = origin_of(cfg, dataset, open_models(cfg, NoCache()))
    given = cfg.knowledge.path is not None
    folder = Path(cfg.knowledge.path).expanduser().resolve() if given else home(cfg) / "knowledge" / dataset.name / origin.key
    allowed = cfg.knowledge.build if building or not given else "never"  # a typo in the path must not start an hour's work

    def standing() -> KnowledgeBase | None:
        if allowed == "always" or not knowledge_base.is_complete(folder):
            return None
        return knowledge_base.load(folder, expected=origin)

    def fits(found: KnowledgeBase) -> bool:
        """Whether it need not be mended; nobody mends a base that means something else."""
        return not (building and found.failed and allowed == "missing" and found.origin.key == origin.key)

    if (found := standing()) and fits(found):
        if building:
            _refuse_another(found, origin)
        return found
    if allowed == "never" and folder.is_file():
        raise KnowledgeError(
            f"{folder} is a file; knowledge.path takes the folder of a knowledge base, such as knowledge.path={folder.parent}/base"
        )
    if allowed == "never":
        raise KnowledgeError(f"no knowledge base at {folder}; build it with: {building_command(cfg)}")
    if file := next((parent for parent in folder.parents if parent.is_file()), None):
        raise KnowledgeError(f"{file} is a file, so nothing can lie below it; choose another {'knowledge.path' if given else 'paths.home'}")
    if given and (strange := knowledge_base.strange_files(folder)):
        raise KnowledgeError(f"{folder} holds {strange[0]}, which is no part of a knowledge base; choose another knowledge.path")
    if rehearses(cfg):
        check_decoder(cfg)
    with workspace(folder, fresh=cfg.run.fresh) as partial:
        if (found := standing()) and fits(found):  # another process has built it while this one waited for its turn
            return found
        _build(cfg, dataset, origin, partial, learned=found.experience if found else ())
    return knowledge_base.load(folder)


def _refuse_another(found: KnowledgeBase, origin: Origin) -> None:
    if found.origin.key != origin.key:
        made, asked = (f"{o.dataset} {o.world}, {o.shots} shots, split {o.split_seed} ({o.key})" for o in (found.origin, origin))
        raise KnowledgeError(
            f"{found.path} holds a base made of {made}, not of {asked}; "
            "choose another knowledge.path, or replace it with knowledge.build=always"
        )


def rehearses(cfg: DictConfig) -> bool:
    """Whether an MLLM answers every support image while the base is built."""
    return cfg.knowledge.rehearse and asks_mllm(cfg)


def origin_of(cfg: DictConfig, dataset: Dataset, models: Models) -> Origin:
    answered = [cfg.slow.decoder, cfg.slow.target, *(["exemplars"] if cfg.slow.exemplars else [])]
    if cfg.slow.decoder in WRITING:
        answered.append(cfg.slow.max_new_tokens)
    if cfg.slow.votes > 1:
        answered.append(("votes", cfg.slow.votes))
    asked = [
        prompts.fingerprint(),
        cfg.models.description_tokens,
        cfg.models.name_prompts,
        cfg.knowledge.pictures_per_description,
        cfg.knowledge.cross_fit,
        answered if rehearses(cfg) else (),
        # Only where they were changed: a base made before there was such a choice keeps its key.
        *([("split", cfg.knowledge.split)] if cfg.knowledge.split != "length" else []),
        *([("templates", cfg.knowledge.templates)] if cfg.models.name_prompts and cfg.knowledge.templates is not None else []),
        *([("views", cfg.knowledge.views)] if cfg.knowledge.views != 1 else []),
    ]
    return Origin(
        dataset=dataset.name,
        world=dataset.world,
        split_hash=Split(dataset.split.support, ()).split_hash,  # a base does not depend on what it is tested with
        shots=cfg.dataset.shots,
        split_seed=cfg.dataset.split_seed,
        models=models.fingerprints,
        prompts=short_hash(asked),
        catalog=short_hash([(c.id, c.name, c.superclass) for c in dataset.catalog.categories]),
        sources={role: _source(spec(cfg, role)) for role in models.fingerprints},
    )


def _source(model: ModelSpec) -> dict[str, str | None]:
    return {"source": model.source, "revision": model.revision, "dtype": model.dtype}


def _build(cfg: DictConfig, dataset: Dataset, origin: Origin, partial: Path, *, learned: Sequence[Experience]) -> None:
    with SqliteCache(partial / JOURNAL) as journal:
        models = open_models(cfg, LayeredCache(journal, open_store(cfg)))
        components = BuildComponents(
            encoder=models.encoder,
            look=look,
            describe=Describer(models.mllm, max_new_tokens=cfg.models.description_tokens) if "mllm" in models.present else None,
            leave_one_out=_leave_one_out(cfg, models),
            name_prompts=_name_prompts(cfg) if cfg.models.name_prompts and reads_text(models.encoder) else None,
            pictures_per_description=cfg.knowledge.pictures_per_description,
            cross_fit=cfg.knowledge.cross_fit,
            views=cfg.knowledge.views,
            families=lambda samples: duplicate_groups(samples, perceptual_hash(cfg)),
            pieces=lambda text: pieces(text, cfg.knowledge.split),
            encode_batch=cfg.models.encoder.batch_size,
            describe_batch=cfg.models.mllm.batch_size,
        )
        with looking_ahead(cfg, ("encoder",), *([("mllm",)] if "mllm" in models.present else [])):
            build(origin, dataset.catalog.categories, dataset.split.support, components, partial, learned=learned)


def _name_prompts(cfg: DictConfig) -> Callable[[Category], tuple[str, ...]]:
    return lambda category: prompts.name_prompts(category.name, category.superclass, cfg.knowledge.templates)


def _leave_one_out(cfg: DictConfig, models: Models) -> LeaveOneOut:
    def answer(
        prototypes: Prototypes,
        records: Sequence[ClassRecord],
        hashes: Sequence[str],
        pictures: Callable[[Sequence[int]], list[Picture]],
    ) -> tuple[Statistics, LeaveOneOutScores]:
        # Always the default System 1 and its first five: a base must not depend on which job of a sweep happens to build it.
        results, statistics = leave_one_out_fast(prototypes, hashes, fusion=Fusion())
        if not rehearses(cfg):
            return statistics, LeaveOneOutScores(cfg.slow.target)
        exemplar = None
        if cfg.slow.exemplars:
            exemplar = Exemplars(prototypes.ids, prototypes.owners.tolist(), prototypes.folds.tolist(), lambda i: pictures([i])[0])
        shortlist = Shortlist({record.id: record for record in records}, candidates=5, exemplar=exemplar)
        slow_scores = leave_one_out_slow(
            results,
            prototypes,
            pictures,
            decoder=build_decoder(cfg, models, records[0].superclass),
            shortlist=shortlist,
            target=cfg.slow.target,
            batches=batches(len(hashes), cfg.models.mllm.batch_size),
        )
        return statistics, slow_scores

    return answer
