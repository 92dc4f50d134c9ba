"""Batches whose borders depend on positions or lengths alone, never on what is left to do; and several at a time, answers in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`; the last list may be shorter."""
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some


def batches(n: int, size: int) -> list[range]:
    """The indices 0 to n - 1 in ranges of `size`."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Positions by length, equal ones in their order. What needs the most memory comes first: if that fails, it fails once."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def take(lengths: Sequence[int], order: Sequence[int], start: int, most: int, room: int) -> int:
    """Where the batch that begins at `start` of `order` (longest first) ends: at most `most` items and, padded to its longest, at most
    `room` in length. A single item goes alone, however long."""
    longest = max(1, lengths[order[start]])
    return min(len(order), start + max(1, min(most, room // longest)))


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
