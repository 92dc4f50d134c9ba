"""Files that a run left behind when it died: found, measured, and removed where nobody can still need them.

Lock files do not count. The kernel frees a lock with its holder, and another process may just have opened the empty file. A base in the
making younger than a day does not count either, because the same command goes on with it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fgvr.utils.files import HeldError, file_lock
from fgvr.utils.text import format_bytes

DAY, HOUR = 86400.0, 3600.0
_PLACES = ("knowledge", "runs", "sweeps", "store")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # of utils.files.atomic_write

Kind = Literal["unfinished base", "replaced base", "temporary file"]


@dataclass(frozen=True, slots=True)
class StaleFile:
    """A file or folder that was found. `kept` says why it was left alone; it is "" when the file was removed."""

    path: Path
    kind: Kind
    bytes: int
    age_seconds: float  # since anything in it was last written
    kept: str = ""


def told(files: Sequence[StaleFile]) -> dict[str, Any]:
    """As JSON values, with the sum of what was removed."""
    removed = sum(file.bytes for file in files if not file.kept)
    rows = [asdict(file) | {"path": str(file.path)} for file in files]
    return {"leftovers": rows, "removed_bytes": removed, "formatted_removed": format_bytes(removed)}


def remove_stale_files(home: Path, *, now: float | None = None) -> list[StaleFile]:
    """Remove what dead runs left below `home`. The result lists everything found, also what is kept and why."""
    now = time.time() if now is None else now
    return [*_bases(home / "knowledge", now), *_temporary(home, now)]


def _bases(knowledge: Path, now: float) -> Iterator[StaleFile]:
    for folder in sorted((*knowledge.glob("*/*.partial"), *knowledge.glob("*/*.old"))):
        if folder.is_symlink() or not folder.is_dir():
            continue
        found = StaleFile(folder, "unfinished base" if folder.suffix == ".partial" else "replaced base", *_measure(folder, now))
        base = folder.with_suffix("")
        try:
            with file_lock(base.with_name(f"{base.name}.lock"), timeout=0.0):
                yield replace(found, kept=_why_kept(found, base) or _remove(folder))
        except HeldError:
            yield replace(found, kept="in use")


def _why_kept(found: StaleFile, base: Path) -> str:
    if found.kind == "replaced base":
        return "" if (base / "manifest.json").is_file() else "the only copy of this base; the next build puts it back"
    return "younger than a day: the same command goes on with it" if found.age_seconds < DAY else ""


def _temporary(home: Path, now: float) -> Iterator[StaleFile]:
    for place in _PLACES:
        for folder, _, names in os.walk(home / place):
            for path in (Path(folder, name) for name in sorted(names) if _TEMPORARY.fullmatch(name)):
                found = StaleFile(path, "temporary file", *_measure(path, now))
                yield replace(found, kept="may be being written" if found.age_seconds < HOUR else _remove(path))


def _measure(path: Path, now: float) -> tuple[int, float]:
    """Bytes in it and seconds since the newest write. A file that disappears meanwhile does not count."""
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
    """Why the file could not be removed; "" when it is gone."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"cannot be removed: {error.strerror or error}"
    return ""
