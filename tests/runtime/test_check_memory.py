"""The judge of memory records: it passes what is true and names each thing that is not."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fgvr.runtime.alerts import Alerts
from fgvr.runtime.events import Event
from fgvr.runtime.monitor import Monitor
from fgvr.runtime.timeline import MemorySample, RecordedSession, Start, Timeline

from .conftest import MIB, PoolMaker

SCRIPTS = Path(__file__).parents[2] / "scripts"
START = Start(0.0, 1, "cpu", 1000 * MIB, 200 * MIB, 0, "lru", None)
REST = MemorySample(
    1.0, 1.0, "end", 200 * MIB, 100 * MIB, {"m": 100 * MIB}, 0, 100 * MIB, 605 * MIB, 700 * MIB, 500 * MIB, 0, 0, 1, 1, True, False
)
USE = replace(REST, ledger=150 * MIB, work=50 * MIB, settled=False)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """scripts/check_memory.py as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("check_memory")


@pytest.fixture
def verdict(script):
    def judged(*samples: MemorySample, used: int = 100):
        events = [Event("loaded", "m", "mllm", used=used * MIB, limit=200 * MIB, monotonic=0.0)]
        return script.judge(Timeline((RecordedSession(START, events, list(samples)),)))

    return judged


def test_a_true_record_passes_with_its_figures(verdict) -> None:
    found = verdict(replace(REST, weights={}, base_uss=None), REST, USE, replace(REST, moving=True, settled=False, uss=500 * MIB))
    assert found.failures == []
    assert (found.compared_at_rest, found.compared_in_use, found.moving, found.before_the_first_load) == (1, 1, 1, 1)
    assert found.worst_at_rest == pytest.approx(0.05) and found.worst_in_use == 0.0 and found.base == 500 * MIB


@pytest.mark.parametrize(
    "sample,used,failure",
    [
        (replace(REST, uss=None), 100, "lack"),
        (replace(REST, ledger=201 * MIB), 100, "over the budget"),
        (REST, 201, "over the budget"),
        (replace(REST, uss=620 * MIB), 100, "20.0%"),
        (replace(REST, uss=580 * MIB), 100, "20.0%"),
        (replace(USE, uss=680 * MIB), 100, "20.0%"),
        (replace(USE, uss=570 * MIB), 100, "20.0%"),
        (replace(REST, storage_bytes=90 * MIB), 100, "storages"),
    ],
)
def test_each_lie_is_named(verdict, sample: MemorySample, used: int, failure: str) -> None:
    assert any(failure in text for text in verdict(REST, sample, used=used).failures)


def test_the_tolerance_may_be_a_share_of_the_budget(script) -> None:
    record = Timeline((RecordedSession(START, [], [replace(REST, uss=615 * MIB)]),))  # 15 MiB: 15 % of 100, 7.5 % of 200
    assert script.judge(record).failures and not script.judge(record, of="budget").failures
    assert script.judge(record, of="budget", tolerance=0.07).failures


def test_nothing_to_compare_is_no_pass(verdict) -> None:
    assert "no sample could be compared" in verdict(replace(REST, moving=True)).failures[0]


def test_the_command_judges_a_file(script, make_pool: PoolMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = make_pool()
    with Monitor(pool, alerts=Alerts(), thread=False).record(tmp_path / "m.jsonl"), pool.lease("mllm"):
        pass
    assert script.main([str(tmp_path / "m.jsonl"), "--json"]) == 1, "fakes hold nothing of what they say they weigh"
    answer = json.loads(capsys.readouterr().out)
    assert answer["worst_at_rest"] > 0.9 and answer["over_budget"] == answer["incomplete"] == 0
    assert script.main([str(tmp_path / "none.jsonl")]) == 3
