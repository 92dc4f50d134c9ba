"""A daemon thread that does an object's rounds: started when first there is something to do, ended with the object."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable

from fgvr.errors import log_failure

log = logging.getLogger(__name__)

_REST = 1.0  # seconds after a round that failed


class Background:
    """Calls one method again and again: after the seconds that it returned (None: no end), or as soon as somebody rings."""

    def __init__(self, rounds: Callable[[], float | None], name: str) -> None:
        """`rounds`: a method of whoever makes this. The thread keeps no reference to that object while it waits."""
        self._bell = bell = threading.Event()
        self._rounds = weakref.WeakMethod(rounds, lambda _: bell.set())
        self._name, self._starting = name, threading.Lock()
        self._thread: threading.Thread | None = None
        self.stopped = False

    @property
    def started(self) -> bool:
        return self._thread is not None

    def ring(self) -> None:
        """A running thread begins its next round now."""
        self._bell.set()

    def start(self) -> None:
        """Rings, and starts the thread if there was none."""
        with self._starting:
            if self._thread is None and not self.stopped:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._bell.set()

    def stop(self) -> None:
        """The thread ends after the round it is in; none is started from now on."""
        with self._starting:
            self.stopped = True
        self._bell.set()

    def join(self, timeout: float) -> bool:
        """Whether no round is under way any more, after at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        pause: float | None = 0.0
        while True:
            self._bell.wait(pause)
            self._bell.clear()
            rounds = self._rounds()
            if rounds is None or self.stopped:
                return
            try:
                pause = rounds()
            except BaseException:  # in this thread an interrupt is a failure like others: nobody else would ever hear of it
                log_failure(log, "%s failed and goes on", self._name)
                pause = 0.0
                time.sleep(_REST)
            del rounds
