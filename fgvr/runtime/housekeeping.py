"""The pool's one thread of its own: lets idle models go after their time, and has ready what is needed next.

It is started when first there is something to do, re-checks everything under the pool's condition, and ends with its pool.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence

from fgvr.runtime.admission import Admission, Load, Request
from fgvr.runtime.events import Events
from fgvr.runtime.ledger import Entry, Ledger
from fgvr.runtime.lifecycle import Lifecycle
from fgvr.runtime.sizing import measure
from fgvr.utils.failures import log_failure

log = logging.getLogger(__name__)

_LOOK_SECONDS = 30.0  # at least so often it looks whether its pool is still there
_LOAD_SECONDS = 60.0  # how long a load ahead of time waits for a moment when nothing computes
NAME = "fgvr-housekeeping"


class Housekeeping:
    """TTL and loading ahead. Nobody waits for it: what fails here is logged, and fails again where it is asked for."""

    def __init__(
        self,
        condition: threading.Condition,
        ledger: Ledger,
        admission: Admission,
        lifecycle: Lifecycle,
        events: Events,
    ) -> None:
        self._condition, self._ledger, self._admission = condition, ledger, admission
        self._lifecycle, self._events = lifecycle, events
        self._wishes: deque[Entry] = deque()
        self._bell = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self.ttl: float | None = None
        self.closed = False

    @property
    def due(self) -> bool:
        """Whether there is reason to start it now."""
        return self.ttl is not None and self._thread is None

    def keep(self, ttl: float | None) -> None:
        """How long models may be idle, from now on."""
        self.ttl = ttl
        self._bell.set()

    def start(self) -> None:
        """Runs from now on, if it did not already; looks at once."""
        with self._starting:
            if self._thread is None and not self.closed:
                self._thread = threading.Thread(target=_run, args=(weakref.ref(self), self._bell), name=NAME, daemon=True)
                self._thread.start()
        self._bell.set()

    def wish(self, entries: list[Entry]) -> None:
        """Have these ready when there is room, in this order."""
        self._wishes.extend(entries)
        self.start()

    def look_ahead(self, leased: Sequence[Entry]) -> None:
        """The stage these models belong to runs now; bring in the next one's."""
        ledger = self._ledger
        with self._condition:
            away = [rank for e in leased if (rank := ledger.stage_of(e)) is not None]
            if not away:
                return
            ledger.stage = (ledger.stage + min(away)) % len(ledger.stages)
            coming = [e for e in ledger.entries.values() if ledger.stage_of(e) == 1 and e.state in ("absent", "parked")]
        if coming:
            measure(self._condition, {entry: entry.spec for entry in coming})
            self.wish(sorted(coming, key=lambda e: e.size))

    def stop(self) -> None:
        """Ends after what it is doing."""
        with self._starting:
            self.closed = True
        self._wishes.clear()
        self._bell.set()

    def round(self) -> float:
        """One look at everything; seconds until the next is due."""
        while self._wishes:
            self._fetch(self._wishes.popleft())
        return min(_LOOK_SECONDS, self._expire())

    def _expire(self) -> float:
        """Models idle for the TTL leave the device, copies in main memory idle for twice as long go."""
        ttl = self.ttl
        if ttl is None:
            return _LOOK_SECONDS
        with self._condition:
            now = time.monotonic()
            idle = self._ledger.idle()
            due = [e for e in idle if now - e.last_used >= ttl]
            for entry in due:
                entry.state, entry.mover = "evicting", self
            parked = [e for e in self._ledger.parked() if not self._ledger.pinned(e)]
            ends = {e: max(e.last_used + 2 * ttl, e.stuck_until) for e in parked}
            waits = [e.last_used + ttl - now for e in idle if e not in due] + [end - now for end in ends.values() if end > now]
        self._lifecycle.evict(due)
        self._lifecycle.host.drop(lambda e: ends.get(e, now + 1) <= now)
        return max(0.001, min([ttl, *waits]))

    def _fetch(self, entry: Entry) -> None:
        """Bring one model in, as long as that is at nobody's cost."""
        measure(self._condition, {entry: entry.spec})
        ask = Request((entry,), entry.work, NAME, (), time.monotonic(), (entry.spec.batch_size,))
        try:
            while not self.closed:
                with self._condition:
                    action = self._admission.ahead(ask)
                if isinstance(action, Load):
                    self._lifecycle.load(entry, _LOAD_SECONDS, patient=True)
                elif action is not None:
                    self._lifecycle.evict(action.entries)
                else:
                    return
        finally:
            with self._condition:
                self._admission.leave(ask)
                self._condition.notify_all()
            self._events.deliver()


def _run(reference: weakref.ref[Housekeeping], bell: threading.Event) -> None:
    pause = 0.0
    while True:
        bell.wait(pause)
        bell.clear()
        keeper = reference()
        if keeper is None or keeper.closed:
            return
        try:
            pause = keeper.round()
        except BaseException:  # in this thread an interrupt is a failure like others: nobody else would ever hear of it
            log_failure(log, "housekeeping failed and goes on")
            pause = _LOOK_SECONDS
        del keeper
