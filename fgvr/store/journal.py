"""Files of long jobs that go on where they stopped: rows that grow by whole batches, and the results of stages."""

from __future__ import annotations

import json
import logging
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from fgvr.errors import StoreError
from fgvr.utils.files import HeldError, acquire_lock, atomic_write, read_json, short_hash, sync_folder, write_json
from fgvr.utils.lazy import LazySequence

log = logging.getLogger(__name__)


class Rows(LazySequence[dict[str, Any]]):
    """The committed rows of a run's file, each read from the disk when it is asked for. A row takes eight bytes of memory.

    Rows that are appended later do not count. The rows outlive the RunFile, and a run that starts anew in the same folder.
    """

    def __init__(self, path: Path, ends: array[int]) -> None:
        """Args: ends: where each row ends, in bytes."""
        super().__init__(len(ends), self._read)
        self._ends = ends
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._turn = threading.Lock()
        weakref.finalize(self, os.close, self._file)

    def _read(self, i: int) -> dict[str, Any]:
        start = self._ends[i - 1] if i else 0
        with self._turn:  # Windows has no os.pread
            os.lseek(self._file, start, os.SEEK_SET)
            return json.loads(os.read(self._file, self._ends[i] - start))


class RunFile:
    """`predictions.jsonl` of a run: one object per line, the same bytes whether or not the run was interrupted.

    Rows stay in the file, and memory holds where each row ends. `<name>.commit` says how far the file is committed. Opening cuts off what
    lies beyond, such as half a batch. There is one writer at a time: a second one gets a StoreError.
    """

    def __init__(self, path: str | Path, *, fresh: bool = False) -> None:
        """Args: fresh: begin without rows, whatever lies there."""
        self.path = Path(path)
        self._commit = self.path.with_name(self.path.name + ".commit")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._ends: array[int] = array("Q")
        self._lock = _alone(self.path)
        try:
            self._file = open(self.path, "a+b")  # noqa: SIM115 - open for the life of this object
        except OSError:
            self._lock.release()
            raise
        try:
            if fresh:
                self.clear()
            else:
                self._size = self._recover()
        except BaseException:
            self.close()
            raise

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Commit one batch: after this call it survives a crash; without it nothing of it does. Keys keep their order."""
        lines = [to_line(row) for row in rows]
        try:
            self._file.truncate(self._size)  # what an append that failed may have left
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._mark(self._size + sum(map(len, lines)))
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written ({error.strerror or error}); make room, then run the same command again"
            ) from error
        for line in lines:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(line))

    def keep(self, count: int) -> None:
        """Hold only the first `count` committed rows from now on."""
        del self._ends[count:]
        self._mark(self._ends[-1] if self._ends else 0)

    def clear(self) -> None:
        """Hold no row from now on. Another file takes this one's place: who reads the former rows keeps them."""
        self._mark(0)
        self._file.close()
        atomic_write(self.path, b"")
        self._file, self._ends = open(self.path, "a+b"), array("Q")  # noqa: SIM115 - open for the life of this object

    def done(self) -> Rows:
        """The rows committed so far, in order."""
        return Rows(self.path, self._ends[:])

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self) -> int:
        """Bytes that count; the rest is cut off. A file without a commit record (copied, or of another tool) counts by whole lines."""
        there = os.fstat(self._file.fileno()).st_size
        marked = read_json(self._commit) if self._commit.exists() else None
        if marked is not None and (not isinstance(marked, int) or marked > there):
            raise StoreError(f"{self.path} is shorter than what was committed to it; start anew with run.fresh=true")
        self._file.seek(0)
        end = 0
        for line in self._file:
            end += len(line)
            if not line.endswith(b"\n") or (marked is not None and end > marked):
                break
            self._ends.append(end)
        committed = self._ends[-1] if self._ends else 0
        if marked is not None and committed != marked:
            raise StoreError(f"{self.path} is not what was committed to it: no row ends at byte {marked}; start anew with run.fresh=true")
        self._file.truncate(committed)
        self._mark(committed)
        sync_folder(self.path.parent)
        return committed

    def _mark(self, size: int) -> None:
        atomic_write(self._commit, f"{size}\n")
        self._size = size


def _alone(path: Path) -> BaseFileLock:
    """The lock of a run's file lies beside it, since `clear` puts another file in its place."""
    try:
        return acquire_lock(path.with_name(f".{path.name}.lock"))
    except HeldError:
        raise StoreError(f"{path} is being written by another run; wait for it or end it, then try again") from None


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def to_line(row: Mapping[str, Any]) -> bytes:
    """Readable UTF-8; undecodable bytes of a file name (lone surrogates) stay JSON escapes."""
    try:
        return _ENCODE(row).encode("utf-8", "backslashreplace") + b"\n"
    except (TypeError, ValueError) as error:
        raise StoreError(f"a row of {sorted(row)} cannot be written as JSON: {error}") from error


class StageCache:
    """Results of the stages of a long job, `folder/<name>.json` for each.

    A stage is done if its file was made from `inputs` and from the same earlier results. It is read; another is computed and written.
    """

    def __init__(self, folder: Path, inputs: Any) -> None:
        """Args: inputs: JSON values on which the first stage depends; a later stage also depends on all earlier results."""
        self._folder, self._inputs = folder, inputs
        self.computed: list[str] = []  # names of the stages that this process has computed

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """The stage's result, plain JSON values. Stages are called in their order."""
        file, inputs = self._folder / f"{name}.json", short_hash([name, self._inputs])
        found = read_json(file) if file.exists() else {}
        if found.get("of") != inputs:
            write_json(file, {"of": inputs, "result": compute()})
            self.computed.append(name)
            found = read_json(file)  # as a later run will see it
        else:
            log.info("%s is done: %s", name, file)
        self._inputs = [inputs, found["result"]]
        return found["result"]
