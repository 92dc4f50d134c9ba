"""A knowledge base where it belongs: opened, or built there."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fgvr.errors import KnowledgeError
from fgvr.knowledge import base as knowledge_base
from fgvr.knowledge.base import KnowledgeBase, Origin
from fgvr.knowledge.build import workspace
from fgvr.types import Experience, Sample

log = logging.getLogger(__name__)


def find_or_build(
    folder: Path,
    origin: Origin,
    build: Callable[[Path, Sequence[Experience]], None],
    *,
    check: Callable[[], None],
    when: Literal["missing", "never", "always"],
    mend: bool,
    fresh: bool,
    key: str,
    command: str,
) -> KnowledgeBase:
    """The base of this origin in this folder.

    Args:
        build: makes the base in another folder; is told the rules of the base that stood there.
        check: raises where the build would fail; called before anything is written.
        mend: also build once more where the base has classes whose description failed, and refuse a base of another origin. In the folder
            of this origin it is the same base, whose classes a person has changed since.
        fresh: forget an unfinished build.
        key: of the configuration, that says where the folder is.
        command: how a person builds it.

    Raises:
        KnowledgeError: absent and not to be built, made by other models, or the folder holds something else.
    """

    def standing() -> KnowledgeBase | None:
        if when == "always" or not knowledge_base.is_complete(folder):
            return None
        return knowledge_base.load(folder, expected=origin)

    def fits(found: KnowledgeBase) -> bool:
        """Whether it need not be mended; nobody mends a base that means something else."""
        return not (mend and found.failed and when == "missing" and found.origin.key == origin.key)

    if (found := standing()) and fits(found):
        if mend and found.origin.key != origin.key:
            if key == "knowledge.path":
                raise _another(found, origin)
            log.warning("%s has other classes or photographs than %s: fgvr add or remove has changed it. %s", folder, origin.dataset, _KEPT)
        return found
    if when == "never" and folder.is_file():
        raise KnowledgeError(
            f"{folder} is a file; knowledge.path takes the folder of a knowledge base, such as knowledge.path={folder.parent}/base"
        )
    if when == "never":
        raise KnowledgeError(f"no knowledge base at {folder}; build it with: {command}")
    if file := next((parent for parent in folder.parents if parent.is_file()), None):
        raise KnowledgeError(f"{file} is a file, so nothing can lie below it; choose another {key}")
    if key == "knowledge.path" and (strange := knowledge_base.strange_files(folder)):
        raise KnowledgeError(f"{folder} holds {strange[0]}, which is no part of a knowledge base; choose another knowledge.path")
    check()
    with workspace(folder, fresh=fresh) as partial:
        if (found := standing()) and fits(found):  # another process has built it while this one waited for its turn
            return found
        build(partial, found.experience if found else ())
    return knowledge_base.load(folder)


_KEPT = "It stays as it is; knowledge.build=always builds it anew from the dataset, without those changes"


def _another(found: KnowledgeBase, origin: Origin) -> KnowledgeError:
    if replace(found.origin, split_hash=origin.split_hash, catalog=origin.catalog) == origin:
        return KnowledgeError(
            f"{found.path} holds a base of {origin.dataset} with other classes or photographs, such as fgvr add and remove leave. {_KEPT}; "
            "every other mode uses it as it is"
        )
    made, asked = (f"{o.dataset} {o.world}, {o.shots} shots, split {o.split_seed} ({o.key})" for o in (found.origin, origin))
    return KnowledgeError(
        f"{found.path} holds a base made of {made}, not of {asked}; "
        "choose another knowledge.path, or replace it with knowledge.build=always"
    )


def support_of(base: KnowledgeBase, samples: Sequence[Sample]) -> list[Sample]:
    """The base's support images in its own order, known by content."""
    found = {sample.sha256: sample for sample in samples}
    missing = [support.key for support in base.support if support.sha256 not in found]
    if missing:
        raise KnowledgeError(f"{base.path} was built from images that the dataset no longer has, the first: {missing[0]}")
    return [found[support.sha256] for support in base.support]
