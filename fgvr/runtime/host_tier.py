"""Copies in main memory: which of them make room for another, and how they go. Called by whoever moves models, outside the condition.

A copy on its way out is `evicting`, like a model on the device: until it is truly gone nobody loads that model again, and its bytes count.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Condition

from fgvr.runtime.events import WAS_PARKED, Events
from fgvr.runtime.gc_tools import let_go, still_held
from fgvr.runtime.ledger import STUCK_SECONDS, Entry, Ledger, State
from fgvr.utils.text import format_bytes

log = logging.getLogger(__name__)


class HostTier:
    """Drops parked copies; the ledger decides nothing here that is not told under the pool's condition."""

    def __init__(self, condition: Condition, ledger: Ledger, events: Events) -> None:
        self._condition, self._ledger, self._events = condition, ledger, events

    def drop(self, which: Callable[[Entry], bool] = lambda entry: True) -> int:
        """Let parked copies go, pinned ones apart; their bytes in main memory."""
        with self._condition:
            marked = self._mark([e for e in self._ledger.parked() if not self._ledger.pinned(e) and which(e)])
        return self._let_go(marked)

    def trim(self) -> int:
        """Drop copies, longest unused first, until they are within their limit."""
        with self._condition:
            marked = self._mark(self._oldest(self._ledger.host_used - self._ledger.host_limit, None))
        return self._let_go(marked)

    def claim(self, entry: Entry, size: int) -> bool:
        """Charge `size` bytes of main memory to this entry, others' oldest copies making room. False: it cannot fit."""
        while True:
            with self._condition:
                short = self._ledger.host_used - entry.host_charge + size - self._ledger.host_limit
                if short <= 0:
                    entry.host_charge = size
                    return True
                oldest = self._oldest(short, entry)
                if sum(e.host_charge for e in oldest) < short:
                    log.info("%s: no room in main memory for %s (runtime.host_budget)", entry.key, format_bytes(size))
                    return False
                marked = self._mark(oldest)
            if not self._let_go(marked):
                return False

    def _oldest(self, excess: int, besides: Entry | None) -> list[Entry]:
        """The longest unused copies that together hold `excess` bytes, or all there are."""
        chosen = []
        for entry in sorted(self._ledger.parked(besides=besides), key=lambda e: e.last_used):
            if excess > 0 and entry.host_charge:
                chosen.append(entry)
                excess -= entry.host_charge
        return chosen

    def _mark(self, entries: Sequence[Entry]) -> list[tuple[Entry, State]]:
        marked: list[tuple[Entry, State]] = [(e, e.state) for e in entries]
        for entry in entries:
            entry.state, entry.mover = "evicting", self
        return marked

    def _let_go(self, marked: list[tuple[Entry, State]]) -> int:
        """Outside the condition: freeing gigabytes takes its time."""
        released, left = 0, list(marked)
        try:
            while left:
                entry, before = left[0]
                survivor = let_go(entry)()
                kept = still_held(survivor)
                entry.model = survivor  # rather that one again than a second beside it
                left.pop(0)
                released += self._settle(entry, before, kept)
        finally:
            for entry, before in left:  # interrupted
                self._settle(entry, before)
            self._events.deliver()
        return released

    def _settle(self, entry: Entry, before: State, kept: str = "") -> int:
        """What it was, when it is still there; bytes that went."""
        with self._condition:
            entry.mover, entry.alert, size = None, kept, 0
            if entry.model is not None:
                entry.state = before
                if kept:
                    entry.stuck_until = time.monotonic() + STUCK_SECONDS
                    self._events.about("alert", entry, text=kept)
            else:
                size, entry.host_charge = entry.host_charge, 0
                entry.state = "absent" if before == "parked" else before
                self._events.about("evicted", entry, bytes=size, text=WAS_PARKED)
            self._condition.notify_all()
        return size
