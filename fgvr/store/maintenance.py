"""Maintenance of a home by hand: what the store holds, make room, check every value; and files that a run left behind when it died.

Correct results never need it. Lock files are no leftovers: the kernel frees a lock with its holder, and another process may just have
opened the empty file. A base in the making younger than a day is none either, because the same command goes on with it.
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

from fgvr.errors import ConfigError
from fgvr.store.cache import SqliteCache
from fgvr.utils.files import HeldError, file_lock
from fgvr.utils.text import format_bytes

ACTIONS = ("stats", "prune", "verify")
DAY, HOUR = 86400.0, 3600.0
_PLACES = ("knowledge", "runs", "sweeps", "store")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # of utils.files.atomic_write

Kind = Literal["unfinished base", "replaced base", "temporary file"]


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What the store holds after an action."""

    action: str
    path: Path
    entries: int
    bytes: int  # of values
    file_bytes: int  # on the disk, the write-ahead log included
    limit: int | None  # bytes of values; None: it may grow as it likes
    dropped: int = 0  # entries, to make room
    damaged: tuple[str, ...] = ()  # keys whose value had changed since it was written; they are dropped and will be computed anew

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "damaged": list(self.damaged)}

    def __str__(self) -> str:
        limit = "no limit" if self.limit is None else f"limit {format_bytes(self.limit)}"
        lines = [
            f"store {self.path}: {self.entries:,} entries, {format_bytes(self.bytes)} ({limit}), {format_bytes(self.file_bytes)} on disk"
        ]
        if self.action == "prune":
            lines.append(f"dropped {self.dropped:,} entries, the least recently used first")
        if self.action == "verify":
            found = f"{len(self.damaged):,} damaged: dropped, they will be computed anew" if self.damaged else "all whole"
            lines.append(f"verified {self.entries + len(self.damaged):,} entries: {found}")
        return "\n".join(lines)


def maintain(path: Path, action: str, limit: int | None) -> MaintenanceReport:
    """Do `action` on the store at `path`; one that does not exist is an empty one, and is not made.

    Raises ConfigError for an unknown action, or prune without a limit; StoreError when the file is damaged as a whole.
    """
    if action not in ACTIONS:
        raise ConfigError(f"action={action}: must be one of {', '.join(ACTIONS)}")
    if action == "prune" and limit is None:
        raise ConfigError("action=prune: to what size? Write store.limit=2GiB (0 empties the store)")
    if not path.exists():
        return MaintenanceReport(action, path, 0, 0, 0, limit)
    dropped, damaged = 0, ()
    with SqliteCache(path) as cache:
        if action == "prune" and limit is not None:
            dropped = cache.prune(limit)
        elif action == "verify":
            damaged = cache.verify()
        held = cache.stats()
    on_disk = sum(file.stat().st_size for file in (path, path.with_name(path.name + "-wal")) if file.exists())
    return MaintenanceReport(action, path, held.entries, held.bytes, on_disk, limit, dropped, damaged)


# --- what dead runs left behind --------------------------------------------------------------------------------------------------


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


def remove_stale_files(home: Path) -> list[StaleFile]:
    """Remove what dead runs left below `home`. The result lists everything found, also what is kept and why."""
    now = time.time()
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
