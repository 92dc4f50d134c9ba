"""A content-addressed cache of embeddings and replies, so that nothing is computed twice.

A key is a hash of everything that its value depends on, so entries never go stale. Losing them costs time, not results.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fgvr.errors import StoreError
from fgvr.protocols import Cache
from fgvr.utils.batches import chunks
from fgvr.utils.files import HeldError, file_lock

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, sha256 BLOB NOT NULL, size INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON entries (used, size);
"""
_PRUNE = """
DELETE FROM entries WHERE key IN (
    SELECT key FROM (SELECT key, SUM(size) OVER (ORDER BY used DESC, key) AS kept FROM entries) WHERE kept > ?
)
"""
_KEYS_PER_QUERY = 500
_MOST_TOUCHED = 10_000  # keys whose last use is not written down yet
_WAIT_SECONDS = 60
_inherited: list[sqlite3.Connection] = []  # a forked child must not close its parent's connections


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The size of a cache."""

    entries: int
    bytes: int


class NoCache:
    """Stores nothing."""

    def get(self, keys: Iterable[str]) -> Mapping[str, bytes]:
        return {}

    def put(self, entries: Mapping[str, bytes]) -> None: ...


class MemoryCache:
    """A dictionary of at most `max_bytes`, from which the least recently used entries go first. Thread-safe."""

    def __init__(self, *, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    def get(self, keys: Iterable[str]) -> Mapping[str, bytes]:
        with self._lock:
            wanted = list(dict.fromkeys(keys))
            found = {key: self._entries[key] for key in wanted if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
            return found

    def put(self, entries: Mapping[str, bytes]) -> None:
        with self._lock:
            for key, value in entries.items():
                self._bytes += len(value) - len(self._entries.pop(key, b""))
                self._entries[key] = bytes(value)
            while self._max_bytes is not None and self._bytes > self._max_bytes:
                self._bytes -= len(self._entries.popitem(last=False)[1])

    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(len(self._entries), self._bytes)


class LayeredCache:
    """A fast `front` before a lasting `back`. Entries that only the back has are copied to the front."""

    def __init__(self, front: Cache, back: Cache) -> None:
        self.front, self.back = front, back

    def get(self, keys: Iterable[str]) -> Mapping[str, bytes]:
        wanted = list(dict.fromkeys(keys))
        near = self.front.get(wanted)
        far = self.back.get(missing) if (missing := [key for key in wanted if key not in near]) else {}
        if far:
            self.front.put(far)
        return {**near, **far}

    def put(self, entries: Mapping[str, bytes]) -> None:
        self.back.put(entries)
        self.front.put(entries)


class SqliteCache:
    """One SQLite file, shared by threads and processes. A killed writer leaves all of a `put` or none of it.

    Each value is stored with its sha256, and a value that no longer matches counts as absent. With `max_bytes` (of values) the least
    recently used entries make room now and then, so the total may exceed it for a while. A deleted file begins anew. Network file systems
    are not supported. Every failure of the file is a StoreError that says what to do.
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._max_bytes = max_bytes
        self._unchecked = max_bytes or 0  # bytes written since the last comparison with max_bytes
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._opened: tuple[int, int] | None = None  # the file that the connection belongs to
        self._touched: dict[str, int] = {}

    def get(self, keys: Iterable[str]) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        wanted = dict.fromkeys(keys)
        with self._database() as database:
            for some in chunks(wanted, _KEYS_PER_QUERY):
                marks = ",".join("?" * len(some))
                rows = database.execute(f"SELECT key, value, sha256 FROM entries WHERE key IN ({marks})", some)
                found.update((key, value) for key, value, digest in rows if sha256(value).digest() == digest)
            self._touched.update(dict.fromkeys(found, time.time_ns()))
            if len(self._touched) > _MOST_TOUCHED:
                with self._transaction():
                    pass  # a transaction writes them down
        return found

    def put(self, entries: Mapping[str, bytes]) -> None:
        if not entries:
            return
        now = time.time_ns()
        rows = [(key, value, sha256(value).digest(), len(value), now) for key, value in entries.items()]
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
        self._unchecked += sum(map(len, entries.values()))
        if self._max_bytes is not None and self._unchecked * 16 >= self._max_bytes:
            self._unchecked = 0
            if self.stats().bytes > self._max_bytes:
                self.prune(self._max_bytes * 9 // 10)

    def stats(self) -> CacheStats:
        with self._database() as database:
            entries, size = database.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM entries").fetchone()
            return CacheStats(entries, size)

    def prune(self, max_bytes: int) -> int:
        """Drop the least recently used entries until at most `max_bytes` of values remain. Returns the number of dropped entries."""
        with self._transaction() as database:
            dropped = database.execute(_PRUNE, (max_bytes,)).rowcount
        with self._database() as database:
            database.executescript("PRAGMA incremental_vacuum")  # `execute` would free a single page
        return dropped

    def verify(self) -> tuple[str, ...]:
        """Drop the entries whose value no longer matches its hash, and return their keys. Raises StoreError for a damaged file."""
        with self._database() as database:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            rows = database.execute("SELECT key, value, sha256 FROM entries")
            bad = tuple(key for key, value, digest in rows if sha256(value).digest() != digest)
        with self._transaction() as database:
            database.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in bad])
        return bad

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                if self._touched:
                    with self._transaction():
                        pass  # the last transaction writes down when entries were last used
                self._connection.close()
            self._connection = None

    def __enter__(self) -> SqliteCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process parts of Python may be gone
            self.close()

    def __repr__(self) -> str:
        return f"SqliteCache({str(self.path)!r})"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction, which also writes down when entries were last read."""
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                touched = [(used, key) for key, used in self._touched.items()]
                database.executemany("UPDATE entries SET used = ? WHERE key = ?", touched)
                yield database
                database.execute("COMMIT")
                self._touched.clear()
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time. A forked child opens its own."""
        with self._lock:
            try:
                if self._connection is not None and self._process != os.getpid():
                    _inherited.append(self._connection)
                    self._connection = None
                if self._connection is not None and self._opened != _identity(self.path):  # the file was deleted
                    self._connection.close()
                    self._connection = None
                if self._connection is None:
                    self._connection, self._process = self._open(), os.getpid()
                    self._opened = _identity(self.path)
                yield self._connection
            except sqlite3.ProgrammingError:
                raise  # a wrong use is no damage of the file
            except sqlite3.Error as error:
                raise self._explained(error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            with self._alone():  # the switch to WAL does not wait
                database = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
                try:
                    database.execute("PRAGMA auto_vacuum = INCREMENTAL")
                    database.execute("PRAGMA journal_mode = WAL")
                    database.execute("PRAGMA synchronous = NORMAL")
                    database.executescript(_SCHEMA)
                except BaseException:
                    database.close()
                    raise
            return database
        except OSError as error:
            raise StoreError(f"cannot open the cache {self.path}: {error}; choose another paths.home") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the file lock. Without file locks an existing store is opened all the same, because SQLite has its own locks."""
        with ExitStack() as held:
            try:
                held.enter_context(file_lock(self.path.with_name(self.path.name + ".lock"), timeout=_WAIT_SECONDS))
            except HeldError:
                raise
            except StoreError:
                if not self.path.exists():
                    raise
            yield

    def _explained(self, error: sqlite3.Error) -> StoreError:
        words = str(error)
        if "locked" in words or "busy" in words:
            cure = f"another process has been writing for over {_WAIT_SECONDS} s; wait for it, then run the same command again"
        elif "full" in words:
            cure = "make room on the disk (mode=cache action=prune), then run the same command again"
        elif "readonly" in words or "unable to open" in words:
            cure = "make the folder writable or choose another paths.home"
        else:
            cure = f"delete {self.path}* and run the same command again; it only holds what can be computed anew"
        return StoreError(f"the cache {self.path} failed ({words}): {cure}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
