"""A base's classes: listed, one added, one removed. The old base answers until the new one is whole; only new photographs are computed."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fgvr.agents.fusion import Fusion
from fgvr.agents.leave_one_out import leave_one_out_fast
from fgvr.data.catalog import Catalog
from fgvr.data.datasets import Dataset
from fgvr.data.folder import Inspector, class_id
from fgvr.data.splits import Split
from fgvr.errors import DatasetError, ImageError, KnowledgeError
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge import change
from fgvr.knowledge.base import KnowledgeBase
from fgvr.knowledge.build import JOURNAL, workspace
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.statistics import Statistics
from fgvr.session import Session
from fgvr.types import Category, Sample
from fgvr.utils.images import list_images
from fgvr.utils.text import plain_name, printable

log = logging.getLogger(__name__)

_PART = "class"  # below the new base while it is built: the class that joins


@dataclass(frozen=True, slots=True)
class Changed:
    """What a base has become, and what was done to it."""

    base: KnowledgeBase
    what: str
    encoded: int  # photographs that were computed
    seconds: float


def open_base(session: Session) -> KnowledgeBase:
    """The base that the configuration means; never built here."""
    return session.derive({"knowledge.build": "never"}).knowledge


def add_class(session: Session, name: str, photos: Sequence[Path]) -> Changed:
    """One class more, or more photographs of a class that is there (by any spelling of its name).

    Raises:
        ImageError: none of the photographs can be read.
        KnowledgeError: no base, one that other models made, or all photographs are in it.
        DatasetError: a photograph is in the base under another class.
    """
    started = time.monotonic()
    path = _path(open_base(session))
    with _changing(path) as (base, partial):
        category = _category(base, name)
        samples = _new_samples(base, category, photos)
        added = _one_class(session, base, category, samples, partial / _PART / "base")
        shutil.rmtree(partial / _PART)
        changed = change.with_class(base, added, _recount)
        _save(changed, partial, started)
        known = category.id in base.records
        if base.slow_scores.scores:
            log.warning("System 2 has not answered leave-one-out on the new photographs: its weight is fitted on the others")
    what = f"{len(samples)} photographs added to {category.name}" if known else f"{category.name} added with {len(samples)} photographs"
    return Changed(knowledge_base.load(path), what, len(samples), time.monotonic() - started)


def remove_class(session: Session, name: str) -> Changed:
    """One class less, by its name, an alias or its id. KnowledgeError where it is unknown, or the last one."""
    started = time.monotonic()
    path = _path(open_base(session))
    with _changing(path) as (base, partial):
        category = _find(change.catalog_of(base), name)
        if category is None:
            raise KnowledgeError(f"{path} has no class {name!r}; fgvr classes lists those it has")
        _save(change.without_class(base, category.id, _recount), partial, started)
    return Changed(knowledge_base.load(path), f"{category.name} removed", 0, time.monotonic() - started)


@contextmanager
def _changing(path: Path) -> Iterator[tuple[KnowledgeBase, Path]]:
    """The base as it is when it is this process's turn, and the folder that will take its place."""
    with workspace(path) as partial:
        if any(partial.glob(f"{JOURNAL}*")):
            raise KnowledgeError(f"a build of {path} was interrupted and its work is kept: finish it first, then change the base")
        try:
            yield knowledge_base.load(path), partial
        except BaseException:
            shutil.rmtree(partial)  # nothing in it took long
            raise


def _path(base: KnowledgeBase) -> Path:
    if base.path is None:
        raise KnowledgeError("this base lies in no folder")
    return base.path


def _save(base: KnowledgeBase, partial: Path, started: float) -> None:
    base.save(partial, created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.monotonic() - started, 3))


def _recount(prototypes: Prototypes, hashes: Sequence[str]) -> Statistics:
    return leave_one_out_fast(prototypes, hashes, fusion=Fusion())[1]  # as a build counts


def _find(catalog: Catalog, name: str) -> Category | None:
    return catalog[name] if name in catalog else catalog.find(name)


def _category(base: KnowledgeBase, name: str) -> Category:
    known = _find(change.catalog_of(base), name)
    if known is not None:
        return known
    shown = plain_name(printable(name))
    if not shown:
        raise DatasetError("a class needs a name: fgvr add NAME PHOTO...")
    return Category(class_id(name), shown, base.classes[0].superclass)


def _new_samples(base: KnowledgeBase, category: Category, photos: Sequence[Path]) -> list[Sample]:
    """The photographs (of folders all in them) that can be read and are not in the base, each content once."""
    files = [file for photo in photos for file in (list_images(photo, recursive=True) if photo.is_dir() else [photo])]
    if not files:
        raise ImageError(f"{', '.join(map(str, photos))}: no images there")
    inspector = Inspector(Path.cwd(), cache_dir=None, strict=False)
    inspector.inspect(Sample(file, str(file), category.id) for file in files)
    for bad in inspector.bad_images:
        log.error("%s", bad)
    if not inspector.seen:
        first = next((f": {bad}" for bad in inspector.bad_images), "")
        raise ImageError(f"none of {len(files)} photographs of {category.name} can be read{first}")
    there = {image.sha256: image for image in base.support}
    other = [(s, there[s.sha256]) for s in inspector.seen if s.sha256 in there and there[s.sha256].category != category.id]
    if other:
        sample, image = other[0]
        raise DatasetError(
            f"{sample.key} is in the base already, as {base.records[image.category].name} ({image.key}); a photograph has one class, "
            "so leave it out"
        )
    fresh = {sample.sha256: sample for sample in inspector.seen if sample.sha256 not in there}
    if not fresh:
        raise KnowledgeError(f"all {len(inspector.seen)} photographs of {category.name} are in {base.path} already; nothing was changed")
    if left := len(inspector.seen) - len(fresh):
        log.warning("%d photographs are in the base already, or twice among these: left out", left)
    return list(fresh.values())


def _one_class(session: Session, base: KnowledgeBase, category: Category, samples: Sequence[Sample], folder: Path) -> KnowledgeBase:
    """A base of this class alone, as every base is built."""
    split, origin = Split(tuple(samples), ()), base.origin
    dataset = Dataset(origin.dataset, origin.world, Catalog((category,)), category.superclass, split, Path.cwd())
    answers_nothing = {"knowledge.leave_one_out": False, "slow.weight": 0}
    alone = {"knowledge.path": str(folder), "knowledge.build": "always", "run.fresh": False, **answers_nothing}
    return session.derive(alone, dataset=dataset).open_knowledge(building=True)
