"""Builds a knowledge base from support images; models are passed in as functions.

The work happens in a sibling `.partial` folder. Its journal keeps each finished batch of model work, so a killed build loses at most one
batch. The folder is renamed when it is complete, so readers never see half a base.
"""

import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps
from PIL.Image import Image

from fgvr.knowledge.base import MANIFEST, KnowledgeBase, Origin, Support, is_complete
from fgvr.knowledge.classes import ClassRecord, DescribeRequest, Description
from fgvr.knowledge.prototypes import Prototypes, halves, unit
from fgvr.knowledge.statistics import LeaveOneOutScores, Statistics
from fgvr.protocols import Each, Encoder, reads_text
from fgvr.types import Category, Experience, Picture, Sample
from fgvr.utils.batches import batches
from fgvr.utils.files import HeldError, file_lock
from fgvr.utils.progress import track

log = logging.getLogger(__name__)

JOURNAL = "journal.sqlite"


LookAt = Callable[[Sequence[int]], list[Picture]]
"""The support images with these numbers, opened."""
LeaveOneOut = Callable[[Prototypes, Sequence[ClassRecord], Sequence[str], LookAt], tuple[Statistics, LeaveOneOutScores]]
"""Leave-one-out on the support images, by both systems, from prototypes, classes, content hashes and images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildComponents:
    """The models as functions, the settings, and the batch sizes of a build."""

    encoder: Encoder
    look: Callable[[Sample], Picture]
    describe: Callable[[Sequence[DescribeRequest]], list[Description]] | None  # None: there is no MLLM to write descriptions
    leave_one_out: LeaveOneOut
    name_prompts: Callable[[Category], Sequence[str]] | None  # None: the encoder does not know these names, or reads no text
    pictures_per_description: int
    cross_fit: bool
    views: int = 1  # of each support image; their vectors are averaged
    families: Callable[[Sequence[Sample]], Sequence[int]] = lambda samples: range(len(samples))  # duplicates share a number
    pieces: Callable[[str], Sequence[str]] = lambda text: (text,)  # of a description, whose vectors are averaged
    encode_batch: int
    describe_batch: int
    each: Each = map  # the batches of the images and of the descriptions


@contextmanager
def workspace(folder: Path, *, fresh: bool = False) -> Iterator[Path]:
    """The `.partial` sibling of `folder`, for this process alone. It becomes `folder` if the body leaves a complete base in it.

    Another process may be at work there, and then this one waits. So the body should first look at what `folder` holds by then.
    """
    partial = folder.with_name(folder.name + ".partial")
    with _alone(folder.with_name(folder.name + ".lock")):
        _recover(folder)
        if fresh and partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        (partial / MANIFEST).unlink(missing_ok=True)  # of a process that died before the renaming
        yield partial
        if is_complete(partial):
            for journal in partial.glob(JOURNAL + "*"):
                journal.unlink()
            _swap(partial, folder)
        elif not any(partial.iterdir()):
            partial.rmdir()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock that others may hold for hours. The wait has no limit, because the kernel frees the lock of a process that dies."""
    holder = lock.with_suffix(".holder")  # not in the lock itself, which Windows lets nobody else read
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(lock, timeout=0.0))
        except HeldError:
            told = holder.read_text() if holder.exists() else "another process"
            log.warning("waiting for %s, at work on %s", told, lock.with_suffix(""))
            held.enter_context(file_lock(lock, timeout=math.inf))
        holder.write_text(f"process {os.getpid()} on {platform.node()}")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def build(
    origin: Origin,
    categories: Sequence[Category],
    samples: Sequence[Sample],
    components: BuildComponents,
    partial: Path,
    *,
    learned: Sequence[Experience] = (),
) -> KnowledgeBase:
    """Encode the support images, describe each class, encode the words, answer leave-one-out, save into `partial`.

    Args:
        samples: support images with labels and content hashes.
        learned: the rules of the base that this one replaces.
    """
    started = time.monotonic()
    position = {category.id: i for i, category in enumerate(categories)}
    samples = sorted(samples, key=lambda s: (position[s.label or ""], s.key))
    owners = np.array([position[s.label or ""] for s in samples], np.int64)
    families = _families(components.families(samples))
    folds = halves(owners.tolist(), families)

    def pictures(indices: Sequence[int]) -> list[Picture]:
        return [components.look(samples[i]) for i in indices]

    encoded, hashes = _encode_images(range(len(samples)), pictures, components)
    records = _describe(categories, owners, folds, pictures, components)
    prompts = components.name_prompts
    prototypes = Prototypes(
        ids=tuple(category.id for category in categories),
        shots=encoded,
        owners=owners,
        folds=folds,
        text=_encode_words([r.description for r in records], components, encoded.shape[1]),
        fold_text=np.stack([_encode_words([r.fold_descriptions[f] for r in records], components, encoded.shape[1]) for f in (0, 1)]),
        name=None if prompts is None else _encode_groups([prompts(category) for category in categories], components.encoder),
        temperature=1 / components.encoder.logit_scale,
        families=families,
    )
    statistics, slow_scores = components.leave_one_out(prototypes, records, hashes, pictures)
    base = KnowledgeBase(
        origin=origin,
        classes=tuple(records),
        prototypes=prototypes,
        statistics=statistics,
        slow_scores=slow_scores,
        experience=tuple(learned),
        support=tuple(Support(s.key, s.label or "", sha256) for s, sha256 in zip(samples, hashes, strict=True)),
    )
    return base.save(partial, created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.monotonic() - started, 3))


def _families(numbers: Sequence[int]) -> np.ndarray | None:
    """The family of each support image; None where no image has a copy."""
    copies = len(numbers) - len(set(numbers))
    if not copies:
        return None
    log.info("%d support images are copies of others of their class, exact or near: left out together wherever one is left out", copies)
    return np.array(numbers, np.int64)


def _encode_images(indices: range, pictures: LookAt, components: BuildComponents) -> tuple[np.ndarray, list[str]]:
    def encode(batch: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        seen = pictures(batch)
        shown = components.encoder.encode([view for picture in seen for view in views(picture, components.views)])
        averaged = shown if components.views == 1 else unit(shown.reshape(len(seen), components.views, -1).mean(axis=1))
        return averaged, [picture.sha256 for picture in seen]

    encoded = components.each(encode, batches(len(indices), components.encode_batch))
    vectors, hashes = zip(*track(encoded, "support images", len(indices), weigh=lambda batch: len(batch[1])), strict=True)
    return np.concatenate(vectors), [sha256 for some in hashes for sha256 in some]


def _describe(
    categories: Sequence[Category], owners: np.ndarray, folds: np.ndarray, pictures: LookAt, components: BuildComponents
) -> list[ClassRecord]:
    """One description per class from its first images and, cross-fitted, one without each fold. Without an MLLM there is none."""
    counts, absent = np.bincount(owners, minlength=len(categories)), Description("", "absent")
    jobs: list[tuple[int, int | None, list[int]]] = []
    for without in (None, 0, 1) if components.cross_fit else (None,):
        for c in range(len(categories)):
            own = np.flatnonzero((owners == c) & (folds != (-1 if without is None else without))).tolist()
            jobs.append((c, without, own[: components.pictures_per_description]))
    jobs = [job for job in jobs if job[2]]  # a class with a single shot has no image outside its fold
    if components.describe is None:
        jobs = []

    def describe(batch: Sequence[int]) -> list[Description]:
        asked = [(categories[c], own) for c, _, own in (jobs[i] for i in batch)]
        requests = [DescribeRequest(category.name, category.superclass, tuple(pictures(own))) for category, own in asked]
        return components.describe(requests) if components.describe else []

    described = components.each(describe, batches(len(jobs), components.describe_batch))
    texts = [text for some in track(described, "descriptions", len(jobs), weigh=len) for text in some]
    written = {(c, without): description for (c, without, _), description in zip(jobs, texts, strict=True)}
    return [
        ClassRecord(
            id=category.id,
            name=category.name,
            superclass=category.superclass,
            aliases=category.aliases,
            description=written.get((c, None), absent),
            fold_descriptions=(written.get((c, 0), absent), written.get((c, 1), absent)),
            shots=int(counts[c]),
        )
        for c, category in enumerate(categories)
    ]


def _encode_words(descriptions: Sequence[Description], components: BuildComponents, width: int) -> np.ndarray:
    """(C, d); a zero row where there is no description, and everywhere without a text side."""
    vectors = np.zeros((len(descriptions), width), np.float32)
    present = [i for i, description in enumerate(descriptions) if description.text and reads_text(components.encoder)]
    if present:
        vectors[present] = _encode_groups([components.pieces(descriptions[i].text) for i in present], components.encoder)
    return vectors


def _encode_groups(groups: Sequence[Sequence[str]], encoder: Encoder) -> np.ndarray:
    """(n, d): the vector of each group of texts, re-normalised means where a group has several."""
    vectors = encoder.encode_text([text for group in groups for text in group])
    parts = np.split(vectors, np.cumsum([len(group) for group in groups])[:-1])
    return np.stack([part[0] if len(part) == 1 else unit(part.mean(axis=0)) for part in parts])


def _recover(folder: Path) -> None:
    """Put the old base back, if a crash between the two renames of `_swap` left it aside."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)


def _swap(partial: Path, folder: Path) -> None:
    """Put the new base in place. The old one is renamed first and deleted last, so a crash leaves one of them whole."""
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    if old.exists():
        shutil.rmtree(old)
    log.info("knowledge base complete: %s", folder)


# --- views of a support image, whose vectors are averaged: itself, its mirror image, its middle 85 %, and that mirrored ---------------

_MIDDLE = 0.85  # of each side


class View(Picture):
    """A view of another picture, made when somebody looks; it travels to other processes as that picture does."""

    __slots__ = ("_number", "_of")

    _of: Picture
    _number: int

    def __init__(self, of: Picture, number: int) -> None:
        mark = f"#view{number}"
        for name, value in (("_of", of), ("_number", number), ("sha256", of.sha256 + mark), ("content", of.content + mark)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self._of, self._number)

    @property
    def image(self) -> Image:  # pyright: ignore[reportIncompatibleVariableOverride]
        whole = self._of.image
        dx, dy = (round(side * (1 - _MIDDLE) / 2) for side in whole.size)
        shown = whole.crop((dx, dy, whole.width - dx, whole.height - dy)) if self._number >= 2 else whole
        return ImageOps.mirror(shown) if self._number % 2 else shown


def views(picture: Picture, count: int) -> list[Picture]:
    """The first `count` views, the image itself first. Each has a hash of its own, so that its vector is cached under its own key."""
    return [picture, *(View(picture, number) for number in range(1, count))]
