"""The one lock of the process that is not the pool's: building a model excludes computing with any other.

Why: `from_pretrained(dtype=...)` changes torch's process-wide default dtype while it runs; a forward pass beside it gets tensors of the
wrong type, and two builds at once leave tied weights on the meta device, silently (measured; docs/adr).
Order of locks: a copy's turn to compute, then this one, then a pool's condition. It is never taken while a pool's condition is held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fgvr.errors import LeaseTimeout, WouldDeadlock


class ConstructLock:
    """Readers compute, the writer builds. Waiting writers go first; a thread that already reads may read again."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers: dict[int, int] = {}  # thread -> depth
        self._writer: int | None = None
        self._writers_waiting = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """Around one model call, never around the body of a lease."""
        me = threading.get_ident()
        with self._condition:
            again = me in self._readers or self._writer == me
            while not again and (self._writer is not None or self._writers_waiting):
                self._condition.wait()
            self._readers[me] = self._readers.get(me, 0) + 1
        try:
            yield
        finally:
            with self._condition:
                self._readers[me] -= 1
                if not self._readers[me]:
                    del self._readers[me]
                    self._condition.notify_all()

    @contextmanager
    def write(self, timeout: float) -> Iterator[None]:
        """Around the construction of a model. Raises LeaseTimeout after `timeout` seconds, WouldDeadlock inside a model call."""
        me = threading.get_ident()
        deadline = time.monotonic() + timeout
        with self._condition:
            if me in self._readers or self._writer == me:
                raise WouldDeadlock("a model cannot be loaded from inside another model's call; take both in one lease")
            self._writers_waiting += 1
            try:
                while self._writer is not None or self._readers:
                    if not self._condition.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                        raise LeaseTimeout(f"running model calls left no moment to load a model within {timeout:g} s")
                self._writer = me
            finally:
                self._writers_waiting -= 1
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._writer = None
                self._condition.notify_all()


CONSTRUCT = ConstructLock()
