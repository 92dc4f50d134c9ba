"""`memory.jsonl`: what happened in the pool during a run, and what was measured beside it. One JSON object per line.

    {"row": "start", ...}     a process begins (or goes on with) the run: device, limit, policy, what is resident already
    {"row": "event", ...}     the pool's own events, in the ledger's order: every load, eviction, lease and return
    {"row": "sample", ...}    the ledger beside what is measured: storages, USS, device, machine
    {"row": "alert", ...}     what the monitor found worth saying
    {"row": "end", ...}       the process has left the run; missing after a crash

`t` is seconds since the start row. A line counts once its newline is there: what a crash tore off is ignored and cut off by the next start.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fgvr.errors import StoreError
from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.runtime.pool import ModelPool
from fgvr.utils.files import acquire_lock

log = logging.getLogger(__name__)

FILE = "memory.jsonl"
"""Of the first device; the second one's is `memory-1.jsonl`."""
VERSION = 1


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that was there when the run began."""

    key: str  # of the model
    role: str  # its role
    source: str  # its files
    bytes: int  # it holds
    last_used: float = 0.0  # seconds before the start


@dataclass(frozen=True, slots=True)
class Start:
    """A process begins to record."""

    when: float  # seconds since 1970
    pid: int  # of the process
    device: str  # its name
    device_total: int  # bytes it has
    limit: int  # the budget, bytes
    reserve: int  # bytes kept free
    policy: str  # whom to evict
    max_models: int | None  # null: no limit
    resident: tuple[Resident, ...] = ()  # already there
    version: int = VERSION  # of this format

    @classmethod
    def of(cls, pool: ModelPool) -> Start:
        status, settings = pool.status(), pool.settings
        return cls(
            when=round(time.time(), 6),
            pid=os.getpid(),
            device=status.device,
            device_total=pool.device.total,
            limit=status.budget,
            reserve=settings.reserve,
            policy=settings.policy.__name__,
            max_models=settings.max_models,
            resident=tuple(Resident(m.key, m.role, m.source, m.bytes, m.idle_seconds) for m in status if m.placed),
        )


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The books beside what is measured, at one moment. Bytes."""

    t: float  # seconds since the start row; before it is written, by the monotonic clock
    when: float  # seconds since 1970
    reason: str  # interval, or the kind of the event that asked for it, start, end
    limit: int  # the budget
    ledger: int  # all of it: weights, working memory, reserve, what did not come back
    weights: Mapping[str, int]  # by key, of models that are on the device or on their way
    work: int  # working memory of running leases, and the reserve
    storage_bytes: int  # under the loaded models' tensors, each storage once, as counted when each was loaded
    uss: int | None  # of this process; None where the system does not tell
    rss: int  # resident set of this process
    base_uss: int | None  # USS before the first load, libraries included; None before it
    device_allocated: int  # by the library's allocator
    device_reserved: int  # likewise, free blocks included
    host_free: int  # main memory
    host_total: int  # likewise
    settled: bool  # nothing leased, loading or leaving while this was measured: ledger and process may be compared
    moving: bool  # something was loading or leaving: the ledger has reserved what the process does not hold yet, or any more

    @property
    def weights_bytes(self) -> int:
        return sum(self.weights.values())


@dataclass(slots=True)
class RecordedSession:
    """What one process recorded; the `monotonic` of its events is in seconds since the start row."""

    start: Start
    events: list[Event] = field(default_factory=list)
    samples: list[MemorySample] = field(default_factory=list)
    alerts: list[tuple[float, Alert]] = field(default_factory=list)
    ended: bool = False

    @property
    def seconds(self) -> float:
        return max([0.0, *(e.monotonic for e in self.events[-1:]), *(s.t for s in self.samples[-1:])])


@dataclass(frozen=True, slots=True)
class Timeline:
    """All sessions of a run; more than one when it was interrupted."""

    sessions: tuple[RecordedSession, ...]

    @property
    def samples(self) -> tuple[MemorySample, ...]:
        return tuple(sample for session in self.sessions for sample in session.samples)


def numbered(device: int) -> str:
    """The file of the device with this number."""
    return f"memory-{device}.jsonl" if device else FILE


# --- writing -----------------------------------------------------------------------------------------------------------------


class Recorder:
    """Appends one process's rows to a file. Every method may be called from any thread; each row is one write.

    While another process writes the file, and from a row on that cannot be written, it keeps silent: a record is worth having, and no
    reason to stop. A process that met nothing in the pool leaves no rows behind those of an earlier one.
    """

    def __init__(self, path: str | Path, start: Start, *, monotonic: float) -> None:
        self.path, self._began = Path(path), monotonic
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._events = self._earlier = 0
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - open for the life of this object
        try:
            self._alone = acquire_lock(self.path.with_name(f".{self.path.name}.lock"))
        except StoreError as error:
            log.info("memory is not recorded: %s", error)
            self._file.close()
            return
        self._file.seek(0)
        self._earlier = self._file.readall().rfind(b"\n") + 1
        self._file.truncate(self._earlier)  # what a crash has torn off goes
        self._write("start", monotonic, asdict(start))

    def event(self, event: Event) -> None:
        row = asdict(event)  # without the fields that do not apply to it
        lean = {f.name: row[f.name] for f in fields(event) if f.default is MISSING or row[f.name] != f.default}
        self._write("event", lean.pop("monotonic"), lean)

    def sample(self, sample: MemorySample) -> None:
        row = asdict(sample)
        self._write("sample", row.pop("t"), row)

    def alert(self, alert: Alert, monotonic: float) -> None:
        self._write("alert", monotonic, asdict(alert))

    def close(self, monotonic: float) -> None:
        self._write("end", monotonic, {})
        with self._lock:
            if not self._file.closed:
                if self._earlier and not self._events:
                    self._file.truncate(self._earlier)
                os.fsync(self._file.fileno())
                self._end()

    def _end(self) -> None:
        self._file.close()
        self._alone.release()

    def _write(self, kind: str, monotonic: float, row: Mapping[str, Any]) -> None:
        t = round(monotonic - self._began, 6)
        line = json.dumps({"row": kind, "t": t, **row}, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            if self._file.closed:
                return
            whole, data = self._file.seek(0, os.SEEK_END), line.encode("utf-8", "backslashreplace")
            try:
                if self._file.write(data) < len(data):  # the disk has taken a part
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._events += kind == "event"
            except OSError as error:
                log.warning("%s: memory is not recorded any more (%s)", self.path, error.strerror or error)
                self._file.truncate(whole)
                self._end()


# --- reading -----------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Timeline:
    """What was recorded. Raises StoreError for a missing file, one of another version, or a line that is none of ours."""
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    sessions: list[RecordedSession] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            kind, t = row.pop("row"), row.pop("t")
            if kind == "start":
                if row["version"] != VERSION:
                    raise ValueError(f"version {row['version']}")
                row.pop("rules", None)  # records of fgvr 0.1 have it
                resident = tuple(Resident(**model) for model in row.pop("resident"))
                sessions.append(RecordedSession(Start(**row, resident=resident)))
            else:
                _add(sessions[-1], kind, t, row)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise StoreError(f"{path}, line {number}: not a row of a memory record of version {VERSION} ({error!r})") from error
    if not sessions:
        raise StoreError(f"{path} holds no memory record")
    for session in sessions:
        session.events.sort(key=lambda e: e.monotonic)  # two threads may have written in the other order
    return Timeline(tuple(sessions))


def _add(session: RecordedSession, kind: str, t: float, row: dict[str, Any]) -> None:
    match kind:
        case "event":
            models = tuple(row.pop("models", ()))
            session.events.append(Event(**row, models=models, monotonic=t))
        case "sample":
            session.samples.append(MemorySample(t=t, **row))
        case "alert":
            session.alerts.append((t, Alert(**row)))
        case "end":
            session.ended = True
        case _:
            raise ValueError(f"row {kind!r}")
