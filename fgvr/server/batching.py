"""Requests that come alone and are computed together: one queue per kind of work, each with a thread that takes what waits, in turns.

Fair: clients take turns, whoever has many requests waits behind his own. Nothing hangs: a job that nobody waits for any more is dropped
from the queue, ends a wait for a lease when it was the batch's last, and ends its row of a running answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgvr.server.http_errors import HttpError, to_http_error
from fgvr.utils.failures import log_failure

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One thing to compute. `group`: only equals share a batch; `tokens`: what it adds to one; `told`: gets text while it grows."""

    payload: Any
    loop: asyncio.AbstractEventLoop
    client: str = ""
    group: Any = None
    tokens: int = 1
    told: Callable[[Any], None] | None = None
    future: asyncio.Future[Any] = field(init=False)
    gone: threading.Event = field(default_factory=threading.Event)
    batch: Batch | None = None

    def __post_init__(self) -> None:
        self.future = self.loop.create_future()

    def cancel(self) -> None:
        """Nobody waits for it any more. From any thread, any number of times."""
        self.gone.set()
        if (batch := self.batch) is not None:
            batch.notice()

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        """From the queue's thread."""

        def do() -> None:
            if not self.future.done():
                self.future.set_exception(error) if error is not None else self.future.set_result(result)
                self.future.exception()  # one that nobody asks for any more is no news for the log

        try:
            self.loop.call_soon_threadsafe(do)
        except RuntimeError:  # the loop is closed: the server is gone, and with it whoever waited
            log.debug("an answer came after the server's end")

    def tell(self, news: Any) -> None:
        """Text so far, for streams; from the queue's thread."""
        if self.told is not None and not self.gone.is_set():
            try:
                self.loop.call_soon_threadsafe(self.told, news)
            except RuntimeError:
                log.debug("text came after the server's end")


class Batch:
    """Jobs computed together. `stop` is set when nobody waits for any of them."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.stop = threading.Event()
        for job in self.jobs:
            job.batch = self
        self.notice()

    def notice(self) -> None:
        if all(job.gone.is_set() for job in self.jobs):
            self.stop.set()


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
        done: Callable[[str, int, float], None] | None = None,
    ) -> None:
        """Args:
        most, most_tokens: jobs of one batch, and the sum of their tokens (a single job may have more).
        wait: seconds a batch that is not full waits for company.
        done: told name, jobs and seconds of each batch.
        """
        self.name, self._compute, self._most, self._most_tokens, self._wait = name, compute, most, most_tokens, wait
        self._done = done
        self._condition = threading.Condition()
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._closed = False
        self._running: Batch | None = None
        self._since = 0.0
        self._thread: threading.Thread | None = None
        self.seconds = 0.0  # running mean of a batch's
        self.size = 1.0  # running mean of its jobs

    def submit(self, job: Job) -> None:
        with self._condition:
            if self._closed:
                raise HttpError(503, "the server is stopping", code="draining", retry=5)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"fgvr-{self.name}", daemon=True)
                self._thread.start()
            self._waiting.setdefault(job.client, deque()).append(job)
            self._condition.notify()

    @property
    def queued(self) -> int:
        with self._condition:
            return sum(not job.gone.is_set() for jobs in self._waiting.values() for job in jobs)

    @property
    def running(self) -> tuple[int, float]:
        """Jobs of the batch that runs, and for how many seconds."""
        batch, since = self._running, self._since
        return (len(batch.jobs), time.monotonic() - since) if batch is not None else (0, 0.0)

    def close(self, timeout: float = 10.0) -> None:
        """What waits is refused, what runs is told to stop."""
        with self._condition:
            self._closed = True
            left = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._condition.notify_all()
            batch, thread = self._running, self._thread
        for job in left:
            job.settle(error=HttpError(503, "the server is stopping", code="draining", retry=5))
        for job in batch.jobs if batch else ():
            job.cancel()
        if thread is not None:
            thread.join(timeout)

    # --- the thread --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            began = time.monotonic()
            try:
                self._work(batch)
                took = time.monotonic() - began
                self.seconds = took if not self.seconds else 0.8 * self.seconds + 0.2 * took
                self.size = 0.8 * self.size + 0.2 * len(batch.jobs)
                if self._done is not None:
                    self._done(self.name, len(batch.jobs), took)
            except Exception as error:  # a bug here must not end the queue: whoever comes next would wait for nobody
                self._fail(batch.jobs, error)
            finally:
                self._running = None

    def _next(self) -> Batch | None:
        """The jobs that go together now; None at the end."""
        with self._condition:
            while True:
                self._forget()
                if self._closed:
                    return None
                if self._waiting:
                    break
                self._condition.wait()
            deadline = time.monotonic() + self._wait
            while not self._closed and self._full() is False and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)
            jobs = self._take()
            if not jobs:
                return Batch([]) if not self._closed else None
            self._since = time.monotonic()
            self._running = Batch(jobs)
            return self._running

    def _forget(self) -> None:
        for client in list(self._waiting):
            kept = deque(job for job in self._waiting[client] if not job.gone.is_set())
            if kept:
                self._waiting[client] = kept
            else:
                del self._waiting[client]

    def _full(self) -> bool:
        jobs = [job for jobs in self._waiting.values() for job in jobs]
        return len(jobs) >= self._most() or sum(job.tokens for job in jobs) >= self._most_tokens

    def _take(self) -> list[Job]:
        """In turns, one job per client and round, until the batch is full. The first job's group is the batch's."""
        self._forget()
        jobs: list[Job] = []
        tokens, most, passed = 0, self._most(), 0
        while self._waiting and len(jobs) < most and passed < len(self._waiting):
            client, line = next(iter(self._waiting.items()))
            job = line[0]
            fits = not jobs or (job.group == jobs[0].group and tokens + job.tokens <= self._most_tokens)
            if fits:
                jobs.append(line.popleft())
                tokens += job.tokens
                passed = 0
            else:
                passed += 1
            if line:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
        return jobs

    def _work(self, batch: Batch) -> None:
        if not batch.jobs:
            return
        try:
            results = self._compute(batch)
        except Exception as error:
            alone = len(batch.jobs) == 1 or to_http_error(error).status != 500
            if alone:
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
                job.settle(error=to_http_error(result))
            else:
                job.settle(result)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        found = to_http_error(error)
        if found.status == 500:
            log_failure(log, "%s failed", self.name)
        for job in jobs:
            job.settle(error=found)
