"""Who computes now: one batch at a time on each copy, and at most so many at once in the whole pool (`runtime.max_concurrency`).

Copy and place are taken together. One after the other a thread could hold the copy and wait for a place, while the thread at that place,
whose model uses another inside its own call, waits for the copy. Such a nested call takes no place of its own.
First come, first served; who waits for a busy copy keeps nobody else from the places that are free.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fgvr.errors import LeaseTimeout, WouldDeadlock


@dataclass(eq=False, slots=True)
class _Waiter:
    copy: object
    thread: int
    ready: float | None = None  # since when only a place is missing
    granted: bool = False
    news: threading.Event = field(default_factory=threading.Event)  # granted, or ready


class ExecutionSlots:
    """The copies and places of one pool. Nothing here is called under the pool's condition, nor takes it."""

    def __init__(self, most: int | None, timeout: float) -> None:
        """`most`: batches at once, None = as many as there are copies. `timeout`: seconds a free copy waits for a place."""
        self.most, self._timeout = most, timeout
        self._lock = threading.Lock()
        self._busy: dict[object, int] = {}  # copy -> the thread that computes with it
        self._depth: dict[int, int] = {}  # thread -> how many copies it computes with; two: the one inside the other's call
        self._waiting: deque[_Waiter] = deque()

    def change(self, most: int | None, timeout: float) -> None:
        """From now on; what computes goes on."""
        with self._lock:
            self.most, self._timeout = most, timeout
            for waiter in self._waiting:
                waiter.news.set()
            self._pass_on()

    @contextmanager
    def turn(self, copy: object) -> Iterator[None]:
        """Around one batch. Raises LeaseTimeout when others keep all places for too long, WouldDeadlock when it waits for this call."""
        me = threading.get_ident()
        self._take(copy, me)
        try:
            yield
        finally:
            with self._lock:
                self._end(copy, me)

    def _take(self, copy: object, me: int) -> None:
        with self._lock:
            if copy not in self._busy and self._has_place(me):
                self._begin(copy, me)
                return
            if me in self._depth and self._in_a_circle(copy, me):
                raise WouldDeadlock("a model is used inside its own call, or two models inside each other's; take turns outside the calls")
            waiter = _Waiter(copy, me, None if copy in self._busy else time.monotonic())
            self._waiting.append(waiter)
        try:
            self._wait(waiter)
        except BaseException:
            with self._lock:
                if waiter.granted:
                    self._end(copy, me)
                else:
                    self._waiting.remove(waiter)
            raise

    def _wait(self, waiter: _Waiter) -> None:
        while True:
            with self._lock:
                if waiter.granted:
                    return
                left = None if waiter.ready is None else waiter.ready + self._timeout - time.monotonic()
                if left is not None and left <= 0:
                    raise LeaseTimeout(
                        f"{len(self._depth)} batches compute and left no place within {self._timeout:g} s "
                        f"(runtime.max_concurrency={self.most}, runtime.lease_timeout)"
                    )
                waiter.news.clear()
            waiter.news.wait(left)

    # --- under the lock ----------------------------------------------------------------------------------------------------

    def _has_place(self, thread: int) -> bool:
        return self.most is None or len(self._depth) < self.most or thread in self._depth

    def _begin(self, copy: object, thread: int) -> None:
        self._busy[copy] = thread
        self._depth[thread] = self._depth.get(thread, 0) + 1

    def _end(self, copy: object, thread: int) -> None:
        del self._busy[copy]
        self._depth[thread] -= 1
        if not self._depth[thread]:
            del self._depth[thread]
        if self._waiting:
            self._pass_on()

    def _pass_on(self) -> None:
        """Whoever can go now goes, in order; so nobody who comes later finds free what one of them waits for."""
        for waiter in tuple(self._waiting):
            if waiter.copy in self._busy:
                waiter.ready = None
            elif self._has_place(waiter.thread):
                self._waiting.remove(waiter)
                self._begin(waiter.copy, waiter.thread)
                waiter.granted = True
                waiter.news.set()
            elif waiter.ready is None:
                waiter.ready = time.monotonic()
                waiter.news.set()

    def _in_a_circle(self, copy: object, me: int) -> bool:
        """Whether whoever computes with this copy waits, by way of others perhaps, for one that this thread computes with."""
        wanted = {waiter.thread: waiter.copy for waiter in self._waiting}
        holder = self._busy.get(copy)
        while holder is not None and holder != me:
            holder = self._busy.get(wanted[holder]) if holder in wanted else None
        return holder == me
