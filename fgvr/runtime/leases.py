"""Leases: how a request waits, acts and gets its models, and how they come back. What may be done next is decided in `admission`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from fgvr.errors import FgvrError, LeaseTimeout
from fgvr.runtime.admission import Admission, Load, Wait
from fgvr.runtime.events import Events
from fgvr.runtime.ledger import Entry, Ledger, Request
from fgvr.runtime.lifecycle import Lifecycle

log = logging.getLogger(__name__)

_HELD: ContextVar[tuple[Request, ...]] = ContextVar("fgvr_leases", default=())  # leases of this thread or task, over all pools
_STOP_SECONDS = 0.1  # how often a waiter looks whether it is told to stop


class Leases:
    """Grants leases of one pool and takes them back."""

    def __init__(self, condition: threading.Condition, ledger: Ledger, admission: Admission, lifecycle: Lifecycle, events: Events) -> None:
        self._condition, self._ledger, self._admission = condition, ledger, admission
        self._lifecycle, self._events = lifecycle, events

    def acquire(self, batches: Mapping[Entry, int], work: int, began: float, timeout: float, stop: threading.Event | None) -> Request:
        """All of these, each for batches of so many items, or none: every exception leaves nothing behind."""
        ask = Request(batches, work, threading.current_thread().name, _HELD.get(), began, stop)
        try:
            while not ask.granted:
                self._step(ask, began + timeout, timeout)
            _HELD.set((*(g for g in ask.own if g in self._ledger.grants), ask))
            self._events.deliver()
            if log.isEnabledFor(logging.DEBUG):
                for key in (e.key for e in ask.entries if e not in ask.loaded):
                    log.debug("reusing %s", key)
            return ask
        except BaseException:
            with self._condition:
                self._admission.withdraw(ask)
                self._condition.notify_all()
            self.give_back(ask)
            self._events.deliver()
            raise

    def give_back(self, grant: Request) -> None:
        """The end of a lease."""
        with self._condition:
            if grant not in self._ledger.grants:
                return
            self._ledger.grants.discard(grant)
            now = time.monotonic()
            for entry, batch in grant.batches.items():
                entry.take_back(batch, now)
            self._events.lent("return", grant, now - grant.granted)
            self._condition.notify_all()
        _HELD.set(tuple(g for g in _HELD.get() if g is not grant))
        if self._lifecycle.closed:
            self._lifecycle.close()
        self._events.deliver()

    def _step(self, ask: Request, deadline: float, timeout: float) -> None:
        """Wait until this request may do something, and do it outside the condition."""
        self._lifecycle.recheck_unreturned()
        with self._condition:
            while True:
                if self._lifecycle.closed:
                    raise FgvrError("this pool is closed; make a new one")
                action = self._admission.decide(ask)
                if not isinstance(action, Wait):
                    break
                if self._pause(ask, action, deadline, timeout):
                    return
            if action is None:
                self._events.lent("lease", ask, ask.granted - ask.asked)
                if self._admission.withdraw(ask):
                    self._condition.notify_all()
                return
        if isinstance(action, Load):
            self._lifecycle.load(action.entry, max(0.0, deadline - time.monotonic()))
        else:
            self._lifecycle.evict(action.entries)

    def _pause(self, ask: Request, wait: Wait, deadline: float, timeout: float) -> bool:
        """Sleeps until something changes; whether time alone may have helped. Raises LeaseTimeout."""
        if ask.stop is not None and ask.stop.is_set():
            raise LeaseTimeout(f"told to stop while waiting for {', '.join(e.key for e in ask.entries)}")
        left = deadline - time.monotonic()
        if left <= 0:
            raise LeaseTimeout(self._admission.timeout_text(ask, timeout))
        pauses = [left, wait.seconds, _STOP_SECONDS if ask.stop is not None else None]
        self._condition.wait(min(pause for pause in pauses if pause is not None))
        return wait.seconds is not None


class Lease(contextlib.AbstractContextManager[Any]):
    """Models leased for the length of a `with` block."""

    def __init__(self, enter: Callable[[], tuple[Request, list[Any]]], leave: Callable[[Request], None]) -> None:
        self._enter, self._leave = enter, leave
        self._grant: Request | None = None

    def __enter__(self) -> Any:
        if self._grant is not None:
            raise FgvrError("this lease is already entered; call pool.lease(...) again")
        self._grant, models = self._enter()
        return models[0] if len(models) == 1 else tuple(models)

    def __exit__(self, *error: object) -> None:
        grant, self._grant = self._grant, None
        if grant is not None:
            self._leave(grant)
