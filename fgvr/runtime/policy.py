"""Whom to evict: pure functions of a snapshot, so that a policy can be tested, replayed and swapped without a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgvr.types import ModelStatus

Policy = Callable[[Sequence[ModelStatus], int, int], Sequence[str]]


def lru(idle: Sequence[ModelStatus], short: int, slots: int = 0) -> tuple[str, ...]:
    """Keys to evict, longest unused first, until `short` bytes and `slots` places are free (or nothing idle is left)."""
    chosen: list[str] = []
    for model in sorted(idle, key=lambda m: (-m.idle_seconds, m.key)):
        if short <= 0 and slots <= 0:
            break
        chosen.append(model.key)
        short -= model.bytes
        slots -= 1
    return tuple(chosen)
