"""The index of a stream, in SQLite: which row lies where, its label and the hash of its content. Memory stays flat, however long it is.

Listing commits every `COMMIT` rows; a killed process loses no more than those. Copies and contradictions are found by sorting all hashes
on the disk, so the answers are exact.
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
import unicodedata
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from fgvr.data.streams.formats import Fault, Format, Row, Shard
from fgvr.errors import DatasetError, StoreError
from fgvr.utils.batches import chunks
from fgvr.utils.files import file_lock
from fgvr.utils.progress import track
from fgvr.utils.text import printable

COMMIT = 20_000
_KEYS = 500  # ids of one query
_PATIENCE = 60.0  # seconds until another process lets go
_READ = "end the other process that holds it, or mend the disk that it lies on"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, path TEXT, part TEXT, stamp TEXT, taken INTEGER DEFAULT 0, done INTEGER DEFAULT 0
);
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY, shard INTEGER, key TEXT, label INTEGER, place INTEGER, size INTEGER, sha256 BLOB
);
CREATE TABLE IF NOT EXISTS spans (shard INTEGER, first INTEGER, last INTEGER, low INTEGER, high INTEGER);
CREATE TABLE IF NOT EXISTS labels (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS faults (shard TEXT, key TEXT, reason TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY);
"""
_ANEW = ("INSERT INTO orders DEFAULT VALUES", [()])
"""Noted whenever ids get another meaning, so that whoever holds some can tell."""
_TABLES = ("shards", "rows", "spans", "labels", "faults", "facts")
Item = tuple[str, str, str | None, int, int, str, bytes]
"""Shard, key, label, place, size, content hash, path of the shard."""


class StreamIndex:
    """Opens, or begins, the index at `file`. Threads may read at the same time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._asked("opened", "make it writable, or end the other process that holds it"):
            self._base = sqlite3.connect(file, check_same_thread=False, timeout=_PATIENCE)
            self._begin(time.monotonic() + _PATIENCE)
        self._turn = threading.RLock()
        self._order: int | None = None  # `_orders` when this process last listed the stream
        weakref.finalize(self, self._base.close)

    def _begin(self, until: float) -> None:
        """The switch to WAL does not wait for another process that begins the same index, so it is tried again."""
        while True:
            try:
                self._base.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-32768; {_SCHEMA}")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    # --- listing -----------------------------------------------------------------------------------------------------------

    def update(self, stream: Format, *, strict: bool) -> None:
        """Lists what is not listed yet. Shards that have changed or gone make it begin anew; one that broke off is tried again.

        Raises DatasetError where no shard is there and, if `strict`, for the first fault.
        """
        found = list(stream.shards())
        shards = [shard for shard in found if isinstance(shard, Shard)]
        with file_lock(self.file.with_suffix(".lock"), timeout=24 * 3600):
            known = dict(self._all("SELECT name, stamp FROM shards"))
            there = {shard.name: shard.stamp for shard in shards}
            if any(there.get(name) != stamp for name, stamp in known.items()):
                self._write(*((f"DELETE FROM {table}", [()]) for table in _TABLES), _ANEW)
            self._write(
                ("DELETE FROM faults WHERE key = '' AND shard NOT IN (SELECT name FROM shards WHERE done)", [()]),
                ("INSERT INTO faults VALUES (?, '', ?)", [(fault.key, fault.reason) for fault in found if isinstance(fault, Fault)]),
                (
                    "INSERT OR IGNORE INTO shards (name, path, part, stamp) VALUES (?, ?, ?, ?)",
                    [(shard.name, os.fsencode(shard.path), shard.part, shard.stamp) for shard in shards],
                ),
            )
            left = {name: (number, taken) for number, name, taken in self._all("SELECT id, name, taken FROM shards WHERE NOT done")}
            before = self.last
            for shard in track([shard for shard in shards if shard.name in left], "listing shards"):
                self._list(shard, *left[shard.name], stream, strict=strict)
            if self.last > before:
                self._tell_apart()
            self._arrange([shard.name for shard in shards])
            self._order = self._orders
            if strict and (fault := self._all("SELECT shard, key, reason FROM faults LIMIT 1")):
                raise DatasetError(f"{fault[0][0]} {fault[0][1]}: {fault[0][2]}; mend it, or set dataset.on_bad_image=skip")

    def _list(self, shard: Shard, number: int, taken: int, stream: Format, *, strict: bool) -> None:
        whole = True
        for some in chunks(map(_hashed, islice(stream.rows(shard), taken, None)), COMMIT):
            broken = sum(not row.key for row in some)  # a fault of the shard is no row: whoever lists it again finds rows in its place
            taken, whole = taken + len(some) - broken, whole and not broken
            rows = [row for row in some if isinstance(row, Row)]
            faults = [(shard.name, fault.key, fault.reason) for fault in some if isinstance(fault, Fault)]
            if strict and faults:
                raise DatasetError(f"{faults[0][0]}, {faults[0][1]}: {faults[0][2]}; mend it, or set dataset.on_bad_image=skip")
            labels = self._label_numbers({row.label for row in rows if row.label is not None})
            first = self.last + 1
            tuples = [(number, row.key, labels.get(row.label or ""), row.place, row.size, row.data) for row in rows]
            self._write(
                ("DELETE FROM facts", [()] if rows else []),
                ("INSERT INTO rows (shard, key, label, place, size, sha256) VALUES (?, ?, ?, ?, ?, ?)", tuples),
                (
                    "INSERT INTO spans VALUES (?, ?, ?, ?, ?)",
                    [(number, first, first + len(rows) - 1, rows[0].place, rows[-1].place)] if rows else [],
                ),
                ("INSERT INTO faults VALUES (?, ?, ?)", faults),
                ("UPDATE shards SET taken = ? WHERE id = ?", [(taken, number)]),
            )
        self._write(("UPDATE shards SET done = ? WHERE id = ?", [(whole, number)]))

    def _tell_apart(self) -> None:
        """Gives rows of one shard that are called the same (of a tar file that was appended to) names of their own."""
        numbered = "SELECT id, ROW_NUMBER() OVER (PARTITION BY shard, key ORDER BY id) AS number FROM rows"
        twice = self._all(f"SELECT number, id FROM ({numbered}) WHERE number > 1")
        self._write(("UPDATE rows SET key = key || ' (' || ? || ')' WHERE id = ?", twice))

    def _arrange(self, names: Sequence[str]) -> None:
        """Gives the rows ids in the order of the shards, whichever was listed first: one that was broken or absent is listed late."""
        spans = self._all("SELECT first, last, shard, low, high, name FROM spans JOIN shards ON shards.id = shard ORDER BY first")
        places = {name: place for place, name in enumerate(names)}
        wanted = sorted(spans, key=lambda span: places[span[-1]])
        if wanted == spans:
            return
        moves, placed, end = [], [], 0
        for first, last, shard, low, high, _ in wanted:
            start, end = end + 1, end + 1 + last - first
            moves.append((start - first, first, last))
            placed.append((shard, start, end, low, high))
        self._write(
            ("UPDATE rows SET id = -(id + ?) WHERE id BETWEEN ? AND ?", [move for move in moves if move[0]]),  # out of the others' way
            ("UPDATE rows SET id = -id WHERE id < 0", [()]),
            ("DELETE FROM spans", [()]),
            ("INSERT INTO spans VALUES (?, ?, ?, ?, ?)", placed),
            ("DELETE FROM facts", [()]),
            _ANEW,
        )

    @property
    def _orders(self) -> int:
        return self._all("SELECT COUNT(*) FROM orders")[0][0]

    def _label_numbers(self, labels: set[str]) -> dict[str, int]:
        self._write(("INSERT OR IGNORE INTO labels (text) VALUES (?)", [(label,) for label in sorted(labels)]))
        found: dict[str, int] = {}
        for some in chunks(labels, _KEYS):
            found |= dict(self._all(f"SELECT text, id FROM labels WHERE text IN ({_marks(some)})", some))
        return found

    # --- the whole ---------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        """The highest id; ids begin at 1."""
        return self._all("SELECT COALESCE(MAX(id), 0) FROM rows")[0][0]

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Images by part and label."""

        def compute() -> bytes:
            tables = "rows JOIN shards ON shards.id = shard JOIN labels ON labels.id = label"
            return json.dumps(self._all(f"SELECT part, text, COUNT(*) FROM {tables} GROUP BY part, label ORDER BY label")).encode()

        parts: dict[str, dict[str, int]] = {part: {} for (part,) in self._all("SELECT DISTINCT part FROM shards")}
        for part, label, number in json.loads(self.remembered("parts", compute)):
            parts[part][label] = number
        return parts

    def ids(self, part: str | None = None) -> np.ndarray:
        """(n,) uint32, ascending: of the rows of a part; None: of all."""
        where, given = ("WHERE part = ?", (part,)) if part is not None else ("", ())
        spans = self._all(f"SELECT first, last FROM spans JOIN shards ON shards.id = shard {where} ORDER BY first", given)
        return np.concatenate([np.arange(first, last + 1, dtype=np.uint32) for first, last in spans] or [np.zeros(0, np.uint32)])

    @property
    def faults(self) -> int:
        return self._all("SELECT COUNT(*) FROM faults")[0][0]

    def fault(self, place: int) -> tuple[str, str, str]:
        """(shard, key, reason)"""
        return self._all("SELECT shard, key, reason FROM faults ORDER BY rowid LIMIT 1 OFFSET ?", (place,))[0]

    @property
    def fault_kinds(self) -> list[tuple[int, str, str, str]]:
        """(count, shard, key and reason of the first) of each kind, numbers in the reasons set aside."""
        return self._all(
            "SELECT COUNT(*), shard, key, reason FROM faults GROUP BY RTRIM(SUBSTR(reason, 1, 16), '0123456789 ') ORDER BY 1 DESC"
        )

    def remembered(self, name: str, compute: Any) -> bytes:
        """A fact about the whole, computed once; forgotten when more is listed."""
        if found := self._all("SELECT value FROM facts WHERE name = ?", (name,)):
            return found[0][0]
        state = self.last, self._orders
        value: bytes = compute()
        same = "(SELECT COALESCE(MAX(id), 0) FROM rows) = ? AND (SELECT COUNT(*) FROM orders) = ?"  # another process may list meanwhile
        self._write((f"INSERT OR REPLACE INTO facts SELECT ?, ? WHERE {same}", [(name, value, *state)]))
        return value

    @property
    def digest(self) -> str:
        """Over keys, labels and contents of all rows, in order."""

        def compute() -> bytes:
            whole = hashlib.sha256()
            for key, label, sha256 in self._each(
                "SELECT key, text, sha256 FROM rows LEFT JOIN labels ON labels.id = label ORDER BY rows.id"
            ):
                whole.update(f"{key}\0{label}\0".encode("utf-8", "surrogateescape") + sha256)
            return whole.hexdigest().encode()

        return self.remembered("digest", compute).decode()

    def repeated(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids of copies of earlier images of the same part and label, ids of images that stand under two labels in one part).

        Sorts all hashes on the disk, once.
        """

        def compute() -> bytes:
            copies, contradictions = [], []
            query = "SELECT sha256, part, label, rows.id FROM rows JOIN shards ON shards.id = shard ORDER BY sha256, part, rows.id"
            for _, group in groupby(self._each(query), key=lambda row: row[:2]):
                same = [(label, number) for _, _, label, number in group]
                if len({label for label, _ in same}) > 1:
                    contradictions += [number for _, number in same]
                else:
                    copies += [number for _, number in same[1:]]
            return np.array([len(copies), *copies, *contradictions], "<u4").tobytes()

        found = np.frombuffer(self.remembered("repeated", compute), "<u4")
        return np.sort(found[1 : found[0] + 1]), np.sort(found[found[0] + 1 :])

    # --- rows --------------------------------------------------------------------------------------------------------------

    def items(self, ids: Sequence[int]) -> list[Item]:
        """Of these rows, by id. Raises StoreError where another process has given the ids another meaning since the last `update`."""
        query = (
            "SELECT shards.name, key, text, place, size, LOWER(HEX(sha256)), path FROM rows JOIN shards ON shards.id = shard "
            "LEFT JOIN labels ON labels.id = label WHERE rows.id IN ({}) ORDER BY rows.id"
        )
        found = [row for some in chunks(ids, _KEYS) for row in self._all(query.format(_marks(some)), [int(number) for number in some])]
        if self._order not in (None, self._orders):
            raise StoreError(f"{self.file}: another process has listed the stream anew meanwhile; run the same command again")
        return found

    def ranked(self, part: str | None) -> Iterator[tuple[int, str, str, str]]:
        """(id, shard, key, label) of all labelled rows, or of those of a part."""
        where, given = ("AND part = ?", (part,)) if part is not None else ("", ())
        query = "SELECT rows.id, name, key, text FROM rows JOIN shards ON shards.id = shard JOIN labels ON labels.id = label WHERE 1 {}"
        return self._each(query.format(where), given)

    def number(self, shard_and_key: str) -> int | None:
        """The id of the row that is called so."""
        name, key = "", shard_and_key
        while "/" in key:
            before, _, key = key.partition("/")
            name = f"{name}/{before}" if name else before
            row = re.fullmatch(r"row (\d+)", key)  # of a table, where the key says the place
            place = "AND ? BETWEEN low AND high" if row else ""
            query = f"SELECT first, last FROM spans JOIN shards ON shards.id = shard WHERE name = ? {place}"
            for first, last in self._all(query, (name, int(row[1])) if row else (name,)):
                if found := self._all("SELECT id FROM rows WHERE key = ? AND id BETWEEN ? AND ?", (key, first, last)):
                    return found[0][0]
        return None

    def among(self, used: Mapping[str, str]) -> dict[int, str]:
        """id -> content hash of the rows whose content is among these hashes."""
        wanted = {bytes.fromhex(sha256) for sha256 in used}
        found = self._each("SELECT id, sha256 FROM rows") if wanted else ()
        return {number: sha256.hex() for number, sha256 in found if sha256 in wanted}

    # --- SQL ---------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _asked(self, what: str, cure: str) -> Iterator[None]:
        """Raises StoreError where SQLite does not do what it is asked."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self.file} cannot be {what} ({error}); {cure}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a wrong use, such as of a closed index, is no damage
                raise
            raise StoreError(f"{self.file} is damaged ({error}); delete it, and the stream is listed again") from error

    def _all(self, query: str, given: Sequence[Any] = ()) -> list[Any]:
        with self._turn, self._asked("read", _READ):
            return self._base.execute(query, given).fetchall()

    def _each(self, query: str, given: Sequence[Any] = ()) -> Iterator[Any]:
        """Row by row; others may read meanwhile."""
        with self._asked("read", _READ):
            cursor = self._base.execute(query, given)
            while some := cursor.fetchmany(10_000):
                yield from some

    def _write(self, *statements: tuple[str, Iterable[Any]]) -> None:
        """All or nothing."""
        with self._asked("written", "make room, then run the same command again"), self._turn, self._base:
            for statement, rows in statements:
                self._base.executemany(statement, rows)


def _hashed(row: Row | Fault) -> Row | Fault:
    """With the hash in place of the image, and names as they can be written anywhere. Accents of a label are composed: the same class may
    be written apart in another shard."""
    if isinstance(row, Fault):
        return Fault(printable(row.key), printable(row.reason))
    label = row.label and unicodedata.normalize("NFC", printable(row.label))
    return replace(row, key=printable(row.key), label=label, data=hashlib.sha256(row.data).digest())


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
