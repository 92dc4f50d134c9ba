"""Maintenance of the store by hand: what it holds, make room, check every value. Correct results never need it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgvr.errors import ConfigError
from fgvr.store.cache import SqliteCache
from fgvr.utils.text import format_bytes

ACTIONS = ("stats", "prune", "verify")


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
