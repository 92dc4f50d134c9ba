"""Work done by the models of one pool, counted where it happens. What the cache answers never comes here."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Work:
    """Totals since the pool was made, or the difference of two such totals."""

    encoder_forwards: int = 0  # images through the image tower
    text_forwards: int = 0  # texts through the text tower
    joint_forwards: int = 0  # image-text pairs
    mllm_calls: int = 0  # prompts, answered or scored
    prompt_tokens: int = 0
    new_tokens: int = 0  # generated; scoring generates none

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


class Counters:
    """Thread-safe running total."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Work()

    def add(self, work: Work) -> None:
        with self._lock:
            self._total = self._total + work

    def snapshot(self) -> Work:
        """The total so far; subtract an earlier one to get the work in between."""
        with self._lock:
            return self._total
