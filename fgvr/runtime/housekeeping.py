"""The pool's one thread of its own: lets idle models go after their time. It re-checks everything under the pool's condition."""

from __future__ import annotations

import threading
import time

from fgvr.runtime.background import Background
from fgvr.runtime.ledger import Ledger
from fgvr.runtime.lifecycle import Lifecycle

NAME = "fgvr-housekeeping"


class Housekeeping:
    """Expires what was idle for the TTL."""

    def __init__(self, condition: threading.Condition, ledger: Ledger, lifecycle: Lifecycle) -> None:
        self._condition, self._ledger, self._lifecycle = condition, ledger, lifecycle
        self.thread = Background(self.expire, NAME)
        self.ttl: float | None = None

    def set_ttl(self, ttl: float | None) -> None:
        """Models may be idle for so long, from now on."""
        self.ttl = ttl
        self.thread.ring()

    def lease_ended(self) -> None:
        """The first model that may ever expire starts the thread."""
        if self.ttl is not None and not self.thread.started:
            self.thread.start()

    def stop(self) -> None:
        """Ends after what it is doing."""
        self.thread.stop()

    def expire(self) -> float | None:
        """Models idle for the TTL leave the device, copies in main memory idle for twice as long go. Seconds until the next look."""
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
