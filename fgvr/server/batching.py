"""Requests that come alone are computed together: each kind of work has a queue and a thread, which takes what waits, clients in turns.

Nothing hangs: a job that nobody waits for any more is dropped from its queue, ends a wait for a lease when it was the batch's last, and
ends its row of a running answer. Nothing lingers: an ended batch lets go of its jobs, and with them of their pictures.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgvr.server.http_errors import stopping, to_http_error
from fgvr.utils.failures import log_failure

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One thing to compute. `group`: only equals share a batch; `tokens`: what it adds to one; `on_text`: gets text while it grows."""

    payload: Any
    loop: asyncio.AbstractEventLoop
    client: str = ""
    group: Any = None
    tokens: int = 1
    on_text: Callable[[Any], None] | None = None
    future: asyncio.Future[Any] = field(init=False)
    gone: threading.Event = field(default_factory=threading.Event)
    batch: Batch | None = None

    def __post_init__(self) -> None:
        self.future = self.loop.create_future()

    def cancel(self) -> None:
        """Nobody waits for it any more. From any thread, any number of times."""
        self.gone.set()
        if (batch := self.batch) is not None:
            batch.stop_if_unwanted()

    def finish(self, result: Any = None, error: Exception | None = None) -> None:
        """From the queue's thread."""

        def finish() -> None:
            if not self.future.done():
                self.future.set_exception(error) if error is not None else self.future.set_result(result)
                self.future.exception()  # marks it as read: whoever left needs no warning in the log

        self._in_loop(finish)

    def report_text(self, news: Any) -> None:
        """Text so far, for streams; from the queue's thread."""
        if (on_text := self.on_text) is not None and not self.gone.is_set():
            self._in_loop(lambda: on_text(news))

    def _in_loop(self, call: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: the server has ended, and so has whoever waited
            log.debug("an answer came after the server's end")


class Batch:
    """Jobs computed together. `stop` is set when nobody waits for any of them."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs = list(jobs)
        self.stop = threading.Event()
        for job in self.jobs:
            job.batch = self
        self.stop_if_unwanted()

    def stop_if_unwanted(self) -> None:
        if all(job.gone.is_set() for job in self.jobs):
            self.stop.set()

    def release(self) -> None:
        """Jobs and their batch name each other: without this, decoded pictures would stay until the garbage collector comes by."""
        for job in self.jobs:
            job.batch = job.payload = None
        self.jobs = []


Compute = Callable[[Batch], Sequence[Any]]
"""One result per job of the batch, in order; an Exception among them is that job's alone."""


class BatchQueue:
    """`compute` is called in the queue's own thread, one batch at a time."""

    def __init__(
        self,
        name: str,
        compute: Compute,
        *,
        most: Callable[[], int],
        most_tokens: int = 1 << 62,
        wait: float = 0.0,
        on_batch: Callable[[str, int, float], None] = lambda name, jobs, seconds: None,
    ) -> None:
        """Args:
        most, most_tokens: jobs of one batch, and the sum of their tokens (a single job may have more).
        wait: seconds a batch that is not full waits for company.
        on_batch: told name, jobs and seconds of each batch.
        """
        self.name, self._compute, self._most, self._most_tokens, self._wait = name, compute, most, most_tokens, wait
        self._on_batch = on_batch
        self._condition = threading.Condition()
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by client
        self._closed = False
        self._running: Batch | None = None
        self._since = 0.0
        self._thread: threading.Thread | None = None
        self.seconds = 0.0  # running mean of a batch's
        self.size = 1.0  # running mean of its jobs

    def submit(self, job: Job) -> None:
        """Raises HttpError (503) after `close`."""
        with self._condition:
            if self._closed:
                raise stopping()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"fgvr-{self.name}", daemon=True)
                self._thread.start()
            self._waiting.setdefault(job.client, deque()).append(job)
            self._condition.notify()

    @property
    def queued(self) -> int:
        with self._condition:
            return sum(not job.gone.is_set() for job in self._all_waiting())

    @property
    def running(self) -> tuple[int, float]:
        """Jobs of the batch that runs, and for how many seconds."""
        batch, since = self._running, self._since
        return (len(batch.jobs), time.monotonic() - since) if batch is not None else (0, 0.0)

    def close(self, timeout: float = 10.0) -> None:
        """What waits is refused, what runs is told to stop."""
        with self._condition:
            self._closed = True
            left = self._all_waiting()
            self._waiting.clear()
            self._condition.notify_all()
            batch, thread = self._running, self._thread
        for job in left:
            job.finish(error=stopping())
        for job in list(batch.jobs) if batch else ():
            job.cancel()
        if thread is not None:
            thread.join(timeout)

    # --- the thread --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._compute_next():
            pass

    def _compute_next(self) -> bool:
        """False at the end. A method of its own, so that the thread holds no batch while it waits for the next."""
        batch = self._next()
        if batch is None:
            return False
        jobs = list(batch.jobs)
        try:
            self._work(batch)
            took = time.monotonic() - self._since
            self.seconds = took if not self.seconds else 0.8 * self.seconds + 0.2 * took
            self.size = 0.8 * self.size + 0.2 * len(jobs)
            self._on_batch(self.name, len(jobs), took)
        except Exception as error:  # a bug here must not end the queue: whoever comes next would wait for nobody
            self._fail(jobs, error)
        finally:
            self._running = None
            batch.release()
        return True

    def _next(self) -> Batch | None:
        """The jobs that go together now; None at the end."""
        with self._condition:
            while not self._closed:
                self._condition.wait_for(lambda: self._closed or self._waiting)
                self._condition.wait_for(lambda: self._closed or self._full(), self._wait)
                if jobs := self._take():
                    self._since = time.monotonic()
                    self._running = Batch(jobs)
                    return self._running
            return None

    def _all_waiting(self) -> list[Job]:
        return [job for jobs in self._waiting.values() for job in jobs]

    def _full(self) -> bool:
        jobs = self._all_waiting()
        return len(jobs) >= self._most() or sum(job.tokens for job in jobs) >= self._most_tokens

    def _take(self) -> list[Job]:
        """In turns, one job per client and round, until the batch is full. The first job's group is the batch's."""
        for client, jobs in list(self._waiting.items()):
            self._waiting[client] = deque(job for job in jobs if not job.gone.is_set())
            if not self._waiting[client]:
                del self._waiting[client]
        taken: list[Job] = []
        tokens, most, passed = 0, self._most(), 0
        while self._waiting and len(taken) < most and passed < len(self._waiting):
            client, line = next(iter(self._waiting.items()))
            job = line[0]
            if not taken or (job.group == taken[0].group and tokens + job.tokens <= self._most_tokens):
                taken.append(line.popleft())
                tokens += job.tokens
                passed = 0
            else:
                passed += 1
            if line:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
        return taken

    def _work(self, batch: Batch) -> None:
        try:
            results = self._compute(batch)
        except Exception as error:
            if len(batch.jobs) == 1 or to_http_error(error).status != 500:
                self._fail(batch.jobs, error)
                return
            log.warning("%s: a batch of %d failed (%s); each is tried alone", self.name, len(batch.jobs), type(error).__name__)
            results = None
        if results is None:  # outside `except`: the exception holds the batch's tensors
            for job in batch.jobs:
                self._work(Batch([job]))
            return
        for job, result in list(zip(batch.jobs, results, strict=True)):  # all of them, or none
            if isinstance(result, Exception):
                job.finish(error=to_http_error(result))
            else:
                job.finish(result)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        found = to_http_error(error)
        if found.status == 500:
            log_failure(log, "%s failed", self.name)
        for job in jobs:
            job.finish(error=found)
