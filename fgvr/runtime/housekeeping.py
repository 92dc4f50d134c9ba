"""The pool's one thread of its own: lets idle models go after their time, and has ready what is needed next.

It re-checks everything under the pool's condition.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from fgvr.errors import FgvrError
from fgvr.runtime.admission import Admission, Load
from fgvr.runtime.background import Background
from fgvr.runtime.events import Events
from fgvr.runtime.ledger import Entry, Ledger, Request
from fgvr.runtime.lifecycle import Lifecycle
from fgvr.runtime.sizing import Sizing

log = logging.getLogger(__name__)

_LOAD_SECONDS = 60.0  # how long a load ahead of time waits for a moment when nothing computes
NAME = "fgvr-housekeeping"


class Housekeeping:
    """Expires what was idle for the TTL, and loads ahead. What fails here is logged; it fails again where it is asked for."""

    def __init__(
        self, condition: threading.Condition, ledger: Ledger, admission: Admission, lifecycle: Lifecycle, events: Events, sizing: Sizing
    ) -> None:
        self._condition, self._ledger, self._admission = condition, ledger, admission
        self._lifecycle, self._events, self._sizing = lifecycle, events, sizing
        self._prefetches: deque[Sequence[Entry]] = deque()
        self.thread = Background(self.round, NAME)
        self.ttl: float | None = None

    def set_ttl(self, ttl: float | None) -> None:
        """Models may be idle for so long, from now on."""
        self.ttl = ttl
        self.thread.ring()

    def lease_ended(self) -> None:
        """The first model that may ever expire starts the thread."""
        if self.ttl is not None and not self.thread.started:
            self.thread.start()

    def prefetch(self, entries: Sequence[Entry]) -> None:
        """Have these ready when there is room, smallest first."""
        self._prefetches.append(tuple(dict.fromkeys(entries)))
        self.thread.start()

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
            self.prefetch(coming)

    def stop(self) -> None:
        """Ends after what it is doing."""
        self.thread.stop()
        self._prefetches.clear()

    def round(self) -> float | None:
        """One look at everything; seconds until the next is due."""
        while self._prefetches:
            for entry in sorted(self._sized(self._prefetches.popleft()), key=lambda e: e.size):
                self._fetch(entry)
        return self._expire()

    def _expire(self) -> float | None:
        """Models idle for the TTL leave the device, copies in main memory idle for twice as long go."""
        ttl = self.ttl
        if ttl is None:
            return None
        ledger = self._ledger
        with self._condition:
            now = time.monotonic()
            ends = {e: e.last_used + ttl for e in ledger.idle()}
            ends |= {e: e.last_used + 2 * ttl for e in ledger.parked() if not ledger.pinned(e)}
            due = [e for e, end in ends.items() if end <= now]
            for entry in due:
                entry.state, entry.mover = "evicting", self
        self._lifecycle.evict(due)
        return max(0.001, min([ttl, *(end - now for end in ends.values() if end > now)]))

    def _sized(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        """Those whose size can be known."""
        for entry in entries:
            try:
                self._sizing.measure({entry: entry.spec})
                yield entry
            except FgvrError as error:
                log.info("%s is not loaded ahead: %s", entry.key, error)

    def _fetch(self, entry: Entry) -> None:
        """Bring one model in, as long as that is at nobody's cost."""
        ask = Request({entry: entry.spec.batch_size}, entry.work, NAME)
        try:
            while not self.thread.stopped:
                with self._condition:
                    action = self._admission.decide_ahead(ask)
                if isinstance(action, Load):
                    self._lifecycle.load(entry, _LOAD_SECONDS, patient=True)
                elif action is not None:
                    self._lifecycle.evict(action.entries)
                else:
                    return
        finally:
            with self._condition:
                self._admission.withdraw(ask)
                self._condition.notify_all()
            self._events.deliver()
