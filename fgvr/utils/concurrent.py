"""Several items at a time, answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(function: Callable[[T], R], items: Iterable[T], at_once: int) -> Iterator[R]:
    """`function` of each item, in order. Up to `at_once` are computed at a time, each in a copy of the caller's context, and one more is
    taken in advance. With `at_once=1` all happens in the caller's thread, item by item."""
    if at_once <= 1:
        yield from map(function, items)
        return
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="fgvr-device")
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(threads.submit(copy_context().run, function, item))
            if len(running) > at_once:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
