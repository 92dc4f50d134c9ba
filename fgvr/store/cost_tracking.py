"""Costs per image: what the models computed, and what was asked of them, cached or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fgvr.types import Cost

ELSEWHERE = ""
"""The key of work that belongs to no image, such as encoding class names."""


class TrackedCosts:
    """Costs by image hash. An image without work costs nothing. Several threads may add at once."""

    def __init__(self) -> None:
        self._costs: dict[str, Cost] = {}
        self._lock = threading.Lock()

    def __getitem__(self, sha256: str) -> Cost:
        return self._costs.get(sha256, Cost())

    def take(self, sha256: str) -> Cost:
        """Remove and return one image's cost, so that the second of two equal images costs nothing."""
        with self._lock:
            return self._costs.pop(sha256, Cost())

    @property
    def total(self) -> Cost:
        with self._lock:
            return sum(self._costs.values(), Cost())

    def add(self, sha256: str, cost: Cost) -> None:
        with self._lock:
            self._costs[sha256] = self[sha256] + cost


_open: ContextVar[tuple[TrackedCosts, ...]] = ContextVar("fgvr_costs", default=())


@contextmanager
def track_costs() -> Iterator[TrackedCosts]:
    """Count the work done inside the `with` block. Blocks nest, and the outer one counts everything.

    The count follows the context: a new thread takes part only inside a copy of this context (`contextvars.copy_context`).
    """
    costs = TrackedCosts()
    token = _open.set((*_open.get(), costs))
    try:
        yield costs
    finally:
        _open.reset(token)


def add_cost(sha256: str, cost: Cost) -> None:
    """Add the cost of one image to every open block; without one this does nothing."""
    for costs in _open.get():
        costs.add(sha256, cost)
