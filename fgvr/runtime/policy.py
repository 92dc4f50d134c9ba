"""Whom to evict: pure functions of a snapshot, so that a policy can be tested, replayed and swapped without a pool.

A policy compares models of the same priority; `choose` lets those of a lower priority go first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fgvr.types import ModelStatus

Policy = Callable[[ModelStatus], float]
"""What would be lost with a model. The smallest loss goes first; of equal ones the longest unused."""
_BLINK = 1e-3  # seconds; two uses closer than this count as one


def lru(model: ModelStatus) -> float:
    """Longest unused first."""
    return -model.idle_seconds


def cost_aware(model: ModelStatus) -> float:
    """Seconds to bring it back x likelihood of its next use / bytes it frees.

    Likelihood is one over the time its next use is away: its usual gap between uses, or how long it has been idle when that is more.
    """
    away = max(model.gap_seconds, model.idle_seconds, _BLINK)
    return model.return_seconds / away / max(model.bytes, 1)


POLICIES: dict[str, Policy] = {"lru": lru, "cost_aware": cost_aware}


def choose(policy: Policy, idle: Iterable[ModelStatus], short: int, slots: int = 0) -> tuple[str, ...]:
    """Keys to evict, in order, until `short` bytes and `slots` places are free (or nothing idle is left)."""

    def worth(m: ModelStatus) -> tuple[int, float, float, str]:
        return (m.priority, policy(m), -m.idle_seconds, m.key)

    chosen: list[str] = []
    for model in sorted(idle, key=worth):
        if short <= 0 and slots <= 0:
            break
        chosen.append(model.key)
        short, slots = short - model.bytes, slots - 1
    return tuple(chosen)
