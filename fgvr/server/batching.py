"""Requests that come alone are computed together: each kind of work has a queue, and a thread per device that takes what waits, clients
in turns.

Nothing hangs: a job that nobody waits for any more is dropped from its queue, ends a wait for a lease when it was the batch's last, and
ends its row of a running answer.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from fgvr.errors import log_failure
from fgvr.server.http_errors import stopping, to_http_error

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One thing to compute. `group`: only equals share a batch; `tokens`: what it adds to one; `on_text`: gets text while it grows.

    Jobs do not know their batch: a circle of the two would keep decoded pictures until the garbage collector comes by."""

    payload: Any
    client: str = ""
    group: Any = None
    tokens: int = 1
    on_text: Callable[[Any], object] | None = None
    future: Future[Any] = field(default_factory=Future)

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more."""
        return self.future.done()

    def finish(self, result: Any) -> None:
        """A result, or an exception."""
        with suppress(InvalidStateError):  # whoever waited has left
            self.future.set_exception(result) if isinstance(result, Exception) else self.future.set_result(result)

    def report_text(self, news: Any) -> None:
        """Text so far, for streams; from the queue's thread."""
        if self.on_text is not None and not self.gone:
            self.on_text(news)


class Unwanted(threading.Event):
    """Set when nobody waits for any of these jobs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__()
        self._jobs = jobs

    def is_set(self) -> bool:
        return all(job.gone for job in self._jobs)


Compute = Callable[[Sequence[Job]], Sequence[Any]]
"""One result per job of the batch, in order; an Exception among them is that job's alone."""


@dataclass(eq=False)
class BatchQueue:
    """`compute` is called in the queue's own threads, one batch at a time in each."""

    name: str
    compute: Compute
    _: KW_ONLY
    most: Callable[[], int]  # jobs of one batch
    most_tokens: int = 1 << 62  # the sum of their tokens (a single job may have more)
    wait: float = 0.0  # seconds a batch that is not full waits for company
    on_batch: Callable[[str, int, float], None] = lambda name, jobs, seconds: None  # told name, jobs and seconds of each batch
    at_once: int = 1  # batches that are computed at a time

    def __post_init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by client
        self._closed = False
        self._running: dict[int, tuple[Sequence[Job], float]] = {}  # by thread: its batch, and since when
        self._threads: list[threading.Thread] = []
        self.seconds = 0.0  # running mean of a batch's
        self.size = 1.0  # running mean of its jobs

    def submit(self, job: Job) -> None:
        """Raises HttpError (503) after `close`."""
        with self._condition:
            if self._closed:
                raise stopping()
            if len(self._threads) < self.at_once and len(self._threads) == len(self._running):  # none is idle
                self._threads.append(threading.Thread(target=self._run, name=f"fgvr-{self.name}", daemon=True))
                self._threads[-1].start()
            self._waiting.setdefault(job.client, deque()).append(job)
            self._condition.notify()

    @property
    def queued(self) -> int:
        with self._condition:
            return sum(not job.gone for job in self._all_waiting())

    @property
    def running(self) -> tuple[int, float]:
        """Jobs of the batches that run, and for how many seconds the first of them has."""
        running = list(self._running.values())
        first = min((since for _, since in running), default=time.monotonic())
        return sum(len(jobs) for jobs, _ in running), time.monotonic() - first if running else 0.0

    def close(self, timeout: float = 10.0) -> None:
        """What waits is refused, what runs is told to stop."""
        with self._condition:
            self._closed = True
            left = [*self._all_waiting(), *(job for jobs, _ in self._running.values() for job in jobs)]
            self._waiting.clear()
            self._condition.notify_all()
        for job in left:
            job.finish(stopping())
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # --- the threads --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        me = threading.get_ident()
        while (jobs := self._next(me)) is not None:
            try:
                began = self._running[me][1]
                self._work(jobs)
                took = time.monotonic() - began
                self.seconds = took if not self.seconds else 0.8 * self.seconds + 0.2 * took
                self.size = 0.8 * self.size + 0.2 * len(jobs)
                self.on_batch(self.name, len(jobs), took)
            except Exception as error:  # a bug here must not end the queue: whoever comes next would wait for nobody
                self._fail(jobs, error)
            del self._running[me]
            del jobs  # this thread may wait long for the next

    def _next(self, me: int) -> Sequence[Job] | None:
        """The jobs that go together now; None at the end."""
        with self._condition:
            while not self._closed:
                self._condition.wait_for(lambda: self._closed or self._waiting)
                self._condition.wait_for(lambda: self._closed or self._full(), self.wait)
                if jobs := self._take():
                    self._running[me] = jobs, time.monotonic()
                    return jobs
            return None

    def _all_waiting(self) -> list[Job]:
        return [job for jobs in self._waiting.values() for job in jobs]

    def _full(self) -> bool:
        jobs = self._all_waiting()
        return len(jobs) >= self.most() or sum(job.tokens for job in jobs) >= self.most_tokens

    def _take(self) -> list[Job]:
        """In turns, one job per client and round, until the batch is full. The first job's group is the batch's."""
        for client, jobs in list(self._waiting.items()):
            self._waiting[client] = deque(job for job in jobs if not job.gone)
            if not self._waiting[client]:
                del self._waiting[client]
        taken: list[Job] = []
        tokens, most, passed = 0, self.most(), 0
        while self._waiting and len(taken) < most and passed < len(self._waiting):
            client, line = next(iter(self._waiting.items()))
            job = line[0]
            if not taken or (job.group == taken[0].group and tokens + job.tokens <= self.most_tokens):
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

    def _work(self, jobs: Sequence[Job]) -> None:
        try:
            results = self.compute(jobs)
        except Exception as error:
            if len(jobs) == 1 or to_http_error(error).status != 500:
                self._fail(jobs, error)
                return
            log.warning("%s: a batch of %d failed (%s); each is tried alone", self.name, len(jobs), type(error).__name__)
            results = None
        if results is None:  # outside `except`: the exception holds the batch's tensors
            for job in jobs:
                self._work([job])
            return
        for job, result in list(zip(jobs, results, strict=True)):  # all of them, or none
            job.finish(to_http_error(result) if isinstance(result, Exception) else result)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        found = to_http_error(error).with_traceback(None)  # its frames hold the batch
        if found.status == 500:
            log_failure(log, "%s failed", self.name)
        for job in jobs:
            job.finish(found)
