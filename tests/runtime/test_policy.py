"""Policies are pure functions of a snapshot: whom they would evict, and what goes before them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvr.runtime.policy import POLICIES, choose, cost_aware, lru
from fgvr.types import ModelStatus

GIB = 1 << 30


def model(key: str, **changes) -> ModelStatus:
    return replace(ModelStatus(key, "mllm", key, "resident", GIB, 0, 0, 1, False, 10.0, return_seconds=1.0), **changes)


def test_lru_takes_the_longest_unused_until_enough_is_free() -> None:
    idle = [model("a", idle_seconds=5), model("b", idle_seconds=50), model("c", idle_seconds=20)]
    assert choose(lru, idle, 1) == ("b",)
    assert choose(lru, idle, GIB + 1) == ("b", "c")
    assert choose(lru, idle, 9 * GIB) == ("b", "c", "a")
    assert choose(lru, idle, 0, slots=2) == ("b", "c")
    assert choose(lru, idle, 0) == choose(lru, [], GIB) == ()


def test_cost_aware_gives_up_what_is_cheap_to_bring_back_rare_and_large() -> None:
    same = [model("slow", return_seconds=30.0), model("quick", return_seconds=0.5)]
    assert choose(cost_aware, same, 1) == ("quick",)
    assert choose(cost_aware, [model("often", gap_seconds=1, idle_seconds=1), model("rare", gap_seconds=600)], 1) == ("rare",)
    assert choose(cost_aware, [model("small"), model("large", bytes=16 * GIB)], 1) == ("large",)
    assert choose(lru, [model("slow", idle_seconds=11, return_seconds=30.0), model("quick", return_seconds=0.5)], 1) == ("slow",)


def test_a_higher_priority_outlives_a_longer_idle_one() -> None:
    idle = [model("dear", priority=1, idle_seconds=99), model("plain", idle_seconds=1)]
    assert choose(lru, idle, 1) == ("plain",)
    assert choose(lru, idle, GIB + 1) == ("plain", "dear")


SNAPSHOTS = st.lists(
    st.builds(
        model,
        st.uuids().map(str),
        bytes=st.integers(0, 40 * GIB),
        idle_seconds=st.floats(0, 1e6),
        gap_seconds=st.floats(0, 1e6),
        return_seconds=st.floats(0, 100),
        priority=st.integers(-2, 2),
    ),
    max_size=8,
)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(idle=SNAPSHOTS, short=st.integers(0, 100 * GIB), slots=st.integers(0, 5))
def test_no_policy_evicts_too_little_or_one_too_many(policy, idle: list[ModelStatus], short: int, slots: int) -> None:
    chosen = choose(policy, idle, short, slots)
    sizes = {m.key: m.bytes for m in idle}
    assert len(set(chosen)) == len(chosen) and set(chosen) <= set(sizes)
    enough = sum(sizes[k] for k in chosen) >= short and len(chosen) >= slots
    assert enough or len(chosen) == len(idle)
    if chosen:  # the last one was needed
        assert sum(sizes[k] for k in chosen[:-1]) < short or len(chosen) - 1 < slots
    assert choose(policy, list(reversed(idle)), short, slots) == chosen
