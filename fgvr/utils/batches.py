"""Batches whose borders depend on positions alone, never on what is left to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`; the last list may be shorter."""
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some


def batches(n: int, size: int) -> list[range]:
    """The indices 0 to n - 1 in ranges of `size`."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]
