"""Wall time, in seconds."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds spent by stage: `with watch("fast"): ...`; stages may repeat and add up. Not for several threads at once."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.stages: dict[str, float] = defaultdict(float)

    @property
    def seconds(self) -> float:
        """Since the watch was made."""
        return time.perf_counter() - self._started

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] += time.perf_counter() - started


@contextmanager
def timed(log: logging.Logger, what: str) -> Iterator[None]:
    """Log how long `what` took, at debug level."""
    started = time.perf_counter()
    yield
    log.debug("%s: %.3f s", what, time.perf_counter() - started)
