"""memory.jsonl: what is written is read again, whatever a crash, a second process or an idle run do to it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fgvr.errors import StoreError
from fgvr.runtime.alerts import Alert, Alerts
from fgvr.runtime.monitor import Monitor
from fgvr.runtime.timeline import read

from .conftest import MIB, MLLM, PoolMaker


def monitor_of(pool) -> Monitor:
    return Monitor(pool, alerts=Alerts(), thread=False)


def use(pool, *roles: str) -> None:
    for role in roles:
        with pool.lease(role):
            pass


def test_events_samples_and_alerts_are_read_as_they_were_written(make_pool: PoolMaker, tmp_path: Path) -> None:
    pool = make_pool(budget=60 * MIB, reserve=MIB, max_models=2)
    monitor = monitor_of(pool)
    use(pool, "joint")
    with monitor.record(tmp_path / "m.jsonl") as recorder:
        use(pool, "encoder", "mllm")
        recorder.alert(Alert("thrash", "x", "é \ud800 text", when=1.0), time.monotonic())
    [session] = read(tmp_path / "m.jsonl").sessions
    start = session.start
    assert (start.device, start.limit, start.reserve, start.policy, start.max_models) == ("simulated", 60 * MIB, MIB, "lru", 2)
    assert [(r.role, r.bytes) for r in start.resident] == [("joint", 20 * MIB)]
    kinds = [m.kind for m in session.events]
    assert kinds == "loading loaded lease return evicting evicted evicting evicted loading loaded lease return".split()
    assert all(m.used <= m.limit == 60 * MIB for m in session.events)
    lease = next(m for m in session.events if m.kind == "lease")
    assert (lease.thread, lease.work, len(lease.models)) == ("MainThread", MIB, 1)
    assert [s.reason for s in session.samples] == ["start", "end"] and session.ended
    assert session.samples[-1].weights == {MLLM.key: 40 * MIB} and session.samples[-1].settled
    assert [alert.text for _, alert in session.alerts] == ["é \ud800 text"]


def test_a_torn_line_is_ignored_and_cut_off_by_the_next_process(make_pool: PoolMaker, tmp_path: Path) -> None:
    pool, file = make_pool(), tmp_path / "m.jsonl"
    monitor = monitor_of(pool)
    with monitor.record(file):
        use(pool, "mllm")
    whole = file.read_bytes()
    torn = [*whole.splitlines(keepends=True)[:-1], b'{"row": "sample", "t": 3.2, "whe']
    file.write_bytes(b"".join(torn))
    [session] = read(file).sessions
    assert not session.ended and session.events
    with monitor.record(file):
        use(pool, "mllm")
    first, second = read(file).sessions
    assert (len(first.events), len(second.events), second.ended) == (4, 2, True)


def test_a_process_that_met_nothing_leaves_nothing_behind_an_earlier_one(make_pool: PoolMaker, tmp_path: Path) -> None:
    pool, file = make_pool(), tmp_path / "m.jsonl"
    monitor = monitor_of(pool)
    with monitor.record(file):
        pass
    assert len(read(file).sessions) == 1, "the first leaves its samples in any case"
    with monitor.record(file):
        use(pool, "mllm")
    before = file.read_bytes()
    with monitor.record(file):
        pass
    assert file.read_bytes() == before


def test_two_processes_do_not_mix_their_rows(make_pool: PoolMaker, tmp_path: Path) -> None:
    pool, other = make_pool(), make_pool()
    with monitor_of(pool).record(tmp_path / "m.jsonl"):
        with monitor_of(other).record(tmp_path / "m.jsonl"):
            use(other, "mllm")
        use(pool, "encoder")
    [session] = read(tmp_path / "m.jsonl").sessions
    assert {m.role for m in session.events} == {"encoder"}


def test_a_full_disk_ends_the_record_and_nothing_else(make_pool: PoolMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    pool, file, limits = make_pool(), tmp_path / "m.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    monitor = monitor_of(pool)
    with monitor.record(file):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 40, limits[1]))  # the next row has room for a part of it
            use(pool, "encoder")
            monitor.sample()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        use(pool, "mllm")
    assert caplog.text.count("memory is not recorded any more") == 1
    with monitor.record(file):
        use(pool, "joint")
    first, second = read(file).sessions
    assert not first.ended and second.ended and {event.role for event in second.events} >= {"joint"}


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "cannot be read"),
        (b"", "no memory record"),
        (b'{"row": "sample", "t": 1}\n', "line 1"),
        (b"[1]\n", "line 1"),
        (b"no json\n", "line 1"),
    ],
)
def test_a_file_that_is_no_record_is_refused_by_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "m.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match=f"(?s)m.jsonl.*{message}"):
        read(file)


def test_a_record_of_another_version_is_refused(make_pool: PoolMaker, tmp_path: Path) -> None:
    with monitor_of(make_pool()).record(tmp_path / "m.jsonl"):
        pass
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    rows[0]["version"] = 99
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(StoreError, match="version 99"):
        read(tmp_path / "m.jsonl")
