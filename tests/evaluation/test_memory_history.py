"""The memory timeline: what is drawn and counted is what the record says."""

from __future__ import annotations

import pytest

from fgvr.evaluation.memory_history import MemoryHistory, memory_history
from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.runtime.timeline import MemorySample, RecordedSession, Resident, Start, Timeline

MIB = 1 << 20
START = Start(0.0, 1, "cpu", 1000 * MIB, 100 * MIB, 2 * MIB, "lru", None)


def happened(t: float, kind: str, key: str = "", used: int = 0, **more) -> Event:
    return Event(kind, key, key.split("-")[0], used=used * MIB, limit=100 * MIB, monotonic=t, when=t, **more)  # type: ignore[arg-type]


def sample(t: float, uss: int) -> MemorySample:
    return MemorySample(t, t, "end", 100 * MIB, 0, {}, 0, 0, uss * MIB, uss * MIB, 10 * MIB, 0, 0, 1, 1, True, False)


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
    return memory_history(Timeline((RecordedSession(START, SWAP, [sample(9, 70), sample(10, 40)], alerts),)))


def test_the_record_is_the_ledger_at_every_event(swap: MemoryHistory) -> None:
    assert [(t, used // MIB) for t, used, _ in swap.used] == [
        (0.0, 2), (1, 62), (2, 62), (2, 72), (5, 62), (6, 62), (6.5, 2), (7, 32), (8, 33)
    ]  # fmt: skip
    assert swap.process == ((9, 60 * MIB), (10, 30 * MIB))
    assert str(swap) == "Memory over 10 s: at most 72.0 MiB of a budget of 100.0 MiB; 2 loads, 1 eviction, 1 alert"
    [mllm, encoder] = swap.totals
    assert (mllm.role, mllm.loads, mllm.evictions, mllm.leases, mllm.leased_seconds) == ("mllm", 1, 1, 1, 3.0)
    assert (encoder.loads, encoder.evictions, encoder.bytes) == (1, 0, 31 * MIB)


def test_a_resumed_run_goes_on_after_its_first_part() -> None:
    again = RecordedSession(
        Start(50.0, 2, "cpu", 1000 * MIB, 100 * MIB, 0, "lru", None, (Resident("encoder-2", "encoder", "x", MIB),)),
        samples=[sample(4, 12)],
    )
    joined = memory_history(Timeline((RecordedSession(START, SWAP), again)))
    assert joined.seconds == 12 and joined.used[-1] == (8.0, MIB, 100 * MIB)


def test_the_chart_keeps_every_peak_whatever_the_number_of_events(swap: MemoryHistory) -> None:
    used, process = swap.chart().lines
    assert max(used.y) == 0.72 and used.y[-1] == 0.33 and max(process.y) == 0.6
    assert [line.y.tolist() for line in memory_history(Timeline((RecordedSession(START),))).chart().lines] == [[0.02] * len(used.x)]
    many = [
        happened(i / 10, "lease" if i % 2 == 0 else "return", used=3 + i % 2 + 90 * (i == 12_345), models=("m-1",), work=MIB, thread="a")
        for i in range(40_000)
    ]
    [line] = memory_history(Timeline((RecordedSession(START, many),))).chart().lines
    assert len(line.x) == len(used.x) and max(line.y) == 0.94
