"""Work per image: what the models computed, and what was asked of them, remembered or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from fgvr.types import Asked, Cost

ELSEWHERE = ""
"""The key of work that belongs to no image, such as encoding class names."""
_NOTHING = Cost()


class Work:
    """Costs by picture hash; a picture nothing was done for costs nothing. Several threads may add at once."""

    def __init__(self) -> None:
        self._costs: dict[str, Cost] = {}
        self._lock = threading.Lock()

    def __getitem__(self, sha256: str) -> Cost:
        return self._costs.get(sha256, _NOTHING)

    def take(self, sha256: str) -> Cost:
        """This picture's cost, once: the second of two equal pictures cost nothing."""
        with self._lock:
            return self._costs.pop(sha256, _NOTHING)

    @property
    def costs(self) -> Mapping[str, Cost]:
        with self._lock:
            return dict(self._costs)

    @property
    def total(self) -> Cost:
        return sum(self.costs.values(), Cost())

    def add(self, sha256: str, cost: Cost) -> None:
        with self._lock:
            self._costs[sha256] = self._costs.get(sha256, Cost()) + cost


_open: ContextVar[tuple[Work, ...]] = ContextVar("fgvr_tally", default=())


@contextmanager
def scope() -> Iterator[Work]:
    """`with tally.scope() as work:` counts what is done inside; scopes nest, and the outer one counts everything.

    Follows the context: a thread started inside joins in only when it runs in a copy of this context (`contextvars.copy_context`).
    """
    work = Work()
    token = _open.set((*_open.get(), work))
    try:
        yield work
    finally:
        _open.reset(token)


def add(
    sha256: str = ELSEWHERE,
    *,
    mllm_calls: int = 0,
    prompt_tokens: int = 0,
    new_tokens: int = 0,
    encoder_forwards: int = 0,
    seconds: float = 0.0,
    cache_hits: int = 0,
    asked: Asked = Asked(),  # noqa: B008 - a frozen record
) -> None:
    """Count work for one picture in every open scope; without one this does nothing."""
    cost = Cost(mllm_calls, prompt_tokens, new_tokens, encoder_forwards, seconds, cache_hits=cache_hits, asked=asked)
    for work in _open.get():
        work.add(sha256, cost)
