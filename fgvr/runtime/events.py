"""What happens in a pool, told to whoever listens: monitors, the server's event stream.

Events are noted under the pool's condition, so their order and figures are the ledger's, and delivered after it is released. While
nobody listens nothing is made. A listener runs in the thread that caused the event, or in one that was just delivering; it may ask the
pool anything, must be quick, and is dropped with a log line when it raises.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fgvr.errors import log_failure
from fgvr.runtime.ledger import Entry, Ledger, Request

log = logging.getLogger(__name__)

Kind = Literal[
    "loading",  # its place is reserved, the load begins
    "loaded",  # from disk; `bytes` measured, `seconds` it took
    "restored",  # from the host tier; likewise
    "evicting",  # no longer lent, on its way out
    "evicted",  # gone; `bytes` that came back
    "parked",  # off the device, its weights kept in host memory; likewise
    "failed",  # a load that failed; `text` says why
    "alert",  # worth a person's look: memory that did not come back, drift
    "lease",  # `models` lent to `thread` with `work` bytes, after `seconds` of waiting
    "return",  # given back after `seconds`
    "oom",  # memory ran out in a load or in use; `text` says where and what is done
    "budget",  # the limit was changed
]
WAS_PARKED = "was parked"  # text of an `evicted` that frees nothing on the device


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. Bytes and seconds; `used` is what the ledger has in use after it, of `limit`."""

    kind: Kind  # what happened
    key: str = ""  # of the model; empty when it is about several, or the pool
    role: str = ""  # of the model
    bytes: int = 0  # that came, went or are lent
    used: int = 0  # by the ledger, after it
    limit: int = 0  # the budget
    text: str = ""  # details
    thread: str = ""  # lease, return: who
    models: tuple[str, ...] = ()  # lease, return: keys
    work: int = 0  # lease, return, loading: working memory
    seconds: float = 0.0  # it took, or was held
    when: float = field(default_factory=time.time)  # seconds since 1970
    monotonic: float = field(default_factory=time.monotonic)


Listener = Callable[[Event], None]


class Events:
    """The listeners of one pool, and what they have still to be told."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._listeners: tuple[Listener, ...] = ()
        self._listening = threading.Lock()
        self._queue: deque[Event] = deque()
        self._delivering = threading.Lock()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """From now on `listener` hears every event; call what is returned to stop that."""
        with self._listening:
            self._listeners = (*self._listeners, listener)
        return lambda: self._drop(listener)

    def about(self, kind: Kind, entry: Entry, **figures: Any) -> None:
        """Note something about one model, with further fields of `Event`. Call under the pool's condition; `deliver` after it."""
        work = entry.work if kind == "loading" else 0
        self.note(kind, key=entry.key, role=entry.spec.role, work=work, **figures)

    def lent(self, kind: Literal["lease", "return"], grant: Request, seconds: float) -> None:
        """Note a lease that was given or returned. Call under the pool's condition, like `about`."""
        if self._listeners:
            keys = tuple(e.key for e in grant.entries)
            key, role = (keys[0], grant.entries[0].spec.role) if len(keys) == 1 else ("", "")
            charge = sum(e.charge for e in grant.entries)
            self.note(kind, key=key, role=role, bytes=charge, thread=grant.holder, models=keys, work=grant.work, seconds=seconds)

    def note(self, kind: Kind, **figures: Any) -> None:
        """Note something with the ledger's figures of this moment. Call under the pool's condition, like `about`."""
        if self._listeners:
            self._queue.append(Event(kind, used=self._ledger.used, limit=self._ledger.limit, **figures))

    def deliver(self) -> None:
        """Tell what is noted, in order. Never under the condition; at once when nothing is noted or somebody else is telling."""
        while self._queue and self._delivering.acquire(blocking=False):
            try:
                while self._queue:
                    self._tell(self._queue.popleft())
            finally:
                self._delivering.release()

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log_failure(log, "a listener of the pool failed on %r and is dropped", event.kind)
                self._drop(listener)

    def _drop(self, listener: Listener) -> None:
        with self._listening:
            self._listeners = tuple(other for other in self._listeners if other is not listener)
