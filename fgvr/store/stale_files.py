"""What a run that died has left in a home: named, measured, and removed only where nobody can still need it.

Lock files are none: the kernel frees a lock with its holder, and an empty file that others may just have opened must stay. A base in
the making younger than a day is none: the same command goes on with it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fgvr.utils.files import HeldError, file_lock

DAY, HOUR = 86400.0, 3600.0
_PLACES = ("knowledge", "runs", "sweeps", "store")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # of utils.files.atomic_write

Kind = Literal["unfinished base", "replaced base", "temporary file"]


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing found. `kept`: why it was left alone, "" when it was removed."""

    path: Path
    kind: Kind
    bytes: int
    age_seconds: float  # since anything in it was last written
    kept: str = ""


def clean(home: Path, *, now: float | None = None) -> list[Leftover]:
    """Remove what dead runs left below `home`; all that is found is told, also what is kept and why."""
    now = time.time() if now is None else now
    return [*_bases(home / "knowledge", now), *_temporary(home, now)]


def _bases(knowledge: Path, now: float) -> Iterator[Leftover]:
    for folder in sorted((*knowledge.glob("*/*.partial"), *knowledge.glob("*/*.old"))):
        if folder.is_symlink() or not folder.is_dir():
            continue
        kind: Kind = "unfinished base" if folder.suffix == ".partial" else "replaced base"
        found = Leftover(folder, kind, *_measure(folder, now))
        base = folder.with_suffix("")
        try:
            with file_lock(base.with_name(f"{base.name}.lock"), timeout=0.0):
                yield _told(found, _why_kept(found, base) or _remove(folder))
        except HeldError:
            yield _told(found, "in use")


def _why_kept(found: Leftover, base: Path) -> str:
    if found.kind == "replaced base":
        return "" if (base / "manifest.json").is_file() else "the only copy of this base; the next build puts it back"
    return "younger than a day: the same command goes on with it" if found.age_seconds < DAY else ""


def _temporary(home: Path, now: float) -> Iterator[Leftover]:
    for place in _PLACES:
        for folder, _, names in os.walk(home / place):
            for name in sorted(names):
                if _TEMPORARY.fullmatch(name):
                    path = Path(folder, name)
                    found = Leftover(path, "temporary file", *_measure(path, now))
                    yield _told(found, "may be being written" if found.age_seconds < HOUR else _remove(path))


def _told(found: Leftover, kept: str) -> Leftover:
    return Leftover(found.path, found.kind, found.bytes, found.age_seconds, kept)


def _measure(path: Path, now: float) -> tuple[int, float]:
    """Bytes in it and seconds since the newest write; a file that goes away meanwhile does not count."""
    size, newest = 0, 0.0
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        try:
            stat = file.lstat()
        except FileNotFoundError:
            continue
        size += stat.st_size if not file.is_dir() else 0
        newest = max(newest, stat.st_mtime)
    return size, max(0.0, now - newest)


def _remove(path: Path) -> str:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"cannot be removed: {error.strerror or error}"
    return ""
