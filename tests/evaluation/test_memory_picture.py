"""The memory timeline: what is drawn and counted is what the record says."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fgvr.evaluation.memory_picture import draw, summary
from fgvr.evaluation.memory_steps import MemoryHistory, memory_history
from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.runtime.timeline import Resident, Sample, Session, Start, Timeline

MIB = 1 << 20
START = Start(0.0, 1, "cpu", 1000 * MIB, 100 * MIB, 2 * MIB, "lru", None)


def happened(t: float, kind: str, key: str = "", used: int = 0, **more) -> Event:
    return Event(kind, key, key.split("-")[0], used=used * MIB, limit=100 * MIB, monotonic=t, when=t, **more)  # type: ignore[arg-type]


def sample(t: float, uss: int) -> Sample:
    return Sample(t, t, "end", 100 * MIB, 0, {}, 0, 0, uss * MIB, uss * MIB, 10 * MIB, 0, 0, 1, 1, True, False)


SWAP = [
    happened(1, "loading", "mllm-1", used=62, bytes=60 * MIB),
    happened(2, "loaded", "mllm-1", used=62, bytes=60 * MIB, seconds=1.0),
    happened(2, "lease", used=72, models=("mllm-1",), work=10 * MIB, thread="a"),
    happened(5, "return", used=62, models=("mllm-1",), work=10 * MIB, thread="a", seconds=3.0),
    happened(6, "evicting", "mllm-1", used=62),
    happened(6.5, "evicted", "mllm-1", used=2, bytes=60 * MIB),
    happened(7, "loading", "encoder-2", used=32, bytes=30 * MIB),
    happened(8, "loaded", "encoder-2", used=33, bytes=31 * MIB, seconds=1.0),
]


@pytest.fixture
def swap() -> MemoryHistory:
    alerts = [(9.0, Alert("thrash", "mllm-1", "<too fast>"))]
    return memory_history(Timeline((Session(START, SWAP, [sample(9, 70), sample(10, 40)], alerts),)))


def test_steps_add_up_to_the_ledger_at_every_event(swap: MemoryHistory) -> None:
    assert [(s.t, s.total // MIB) for s in swap.steps] == [
        (0.0, 2), (1, 62), (2, 62), (2, 72), (5, 62), (6.5, 2), (7, 32), (8, 33)
    ]  # fmt: skip
    assert (swap.peak, swap.limit, swap.seconds) == (72 * MIB, 100 * MIB, 10)
    assert swap.process == ((9, 60 * MIB), (10, 30 * MIB))


def test_a_model_is_loading_then_in_use_then_resident_then_gone(swap: MemoryHistory) -> None:
    spans = [(s.state, s.start, s.end) for s in swap.spans if s.key == "mllm-1"]
    assert spans == [("loading", 1, 2), ("leased", 2, 5), ("resident", 5, 6.5)]
    [mllm, encoder] = swap.totals
    assert (mllm.role, mllm.loads, mllm.evictions, mllm.leases, mllm.leased_seconds) == ("mllm", 1, 1, 1, 3.0)
    assert (encoder.loads, encoder.evictions, encoder.bytes) == (1, 0, 31 * MIB)


def test_a_resumed_run_goes_on_after_its_first_part() -> None:
    again = Session(
        Start(50.0, 2, "cpu", 1000 * MIB, 100 * MIB, 0, "lru", None, (Resident("encoder-2", "encoder", "x", MIB),)),
        samples=[sample(4, 12)],
    )
    joined = memory_history(Timeline((Session(START, SWAP), again)))
    assert joined.borders == (8.0,) and joined.seconds == 12
    assert joined.steps[-1].weights == {"encoder-2": MIB}
    assert "resumed" in draw(joined)


def test_the_picture_is_whole_xml_that_says_what_it_shows(swap: MemoryHistory) -> None:
    root = ET.fromstring(draw(swap))
    assert root.tag.endswith("svg")
    assert root.get("aria-label") == summary(swap) == "Memory over 10 s: at most 72.0 MiB of a budget of 100.0 MiB; 2 loads, 1 eviction"
    words = " ".join(root.itertext())
    assert "budget 100 MiB" in words and "thrash: <too fast>" in words
    for word in ("mllm", "encoder", "working memory", "loading", "eviction", "USS"):
        assert word in words


def test_a_budget_far_above_everything_flattens_nothing(swap: MemoryHistory) -> None:
    from dataclasses import replace

    roomy = replace(swap, steps=tuple(replace(step, limit=10_000 * MIB) for step in swap.steps))
    assert "far above" in draw(roomy) and 'class="limit"' not in draw(roomy)


def test_a_run_without_models_and_one_with_very_many_leases_can_be_drawn() -> None:
    empty = memory_history(Timeline((Session(START),)))
    assert ET.fromstring(draw(empty)) is not None
    many = [
        happened(i / 10, "lease" if i % 2 == 0 else "return", used=3 + i % 2, models=("m-1",), work=MIB, thread="a") for i in range(40_000)
    ]
    picture = draw(memory_history(Timeline((Session(START, many),))))
    assert len(picture) < 300_000
