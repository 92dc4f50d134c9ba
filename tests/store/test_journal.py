"""A run's file grows by whole batches and ends up with the same bytes however often it was interrupted."""

import json
import multiprocessing
import os
import signal
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvr.errors import StoreError
from fgvr.store.journal import RunFile

spawn = multiprocessing.get_context("spawn")
BATCHES = [[{"image": f"é{batch}/{i}.png", "n": i / 7} for i in range(3)] for batch in range(5)]


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rest(path, batches=BATCHES):
    with RunFile(path) as file:
        finished = len(file.done()) // 3
        for batch in batches[finished:]:
            file.append(batch)
    return path.read_bytes()


@pytest.fixture
def uninterrupted(tmp_path):
    return write_rest(tmp_path / "whole.jsonl")


def test_rows_come_back_as_they_went_in(tmp_path):
    write_rest(tmp_path / "p.jsonl")
    rows = [row for batch in BATCHES for row in batch]
    assert read_rows(tmp_path / "p.jsonl") == rows
    with RunFile(tmp_path / "p.jsonl") as file:
        assert list(file.done()) == rows and file.done()[-2:] == rows[-2:] and file.done()[3] == rows[3]


@pytest.mark.parametrize("tail", [b'{"image": "to', b'{"image": "x.png", "n": 1}\n', b"\x00\x00\n", b'{"a": 1}\n{"b"'])
def test_what_was_not_committed_is_cut_off(tmp_path, uninterrupted, tail):
    path = tmp_path / "p.jsonl"
    write_rest(path, BATCHES[:2])
    with open(path, "ab") as file:
        file.write(tail)
    with RunFile(path) as file:
        assert len(file.done()) == 6
    assert write_rest(path) == uninterrupted


def test_a_copied_file_counts_by_whole_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    with RunFile(path) as file:
        assert list(file.done()) == [{"a": 1}, {"a": 2}]


def test_a_file_that_lost_committed_rows_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    write_rest(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match=r"run\.fresh=true"):
        RunFile(path)


def test_rows_take_next_to_no_memory_and_outlive_the_run_file(tmp_path):
    path = tmp_path / "p.jsonl"
    tracemalloc.start()
    try:
        with RunFile(path) as file:
            held = []
            for batch in range(20):
                file.append({"i": batch * 100 + i, "much": "x" * 1000} for i in range(100))
                held.append(tracemalloc.get_traced_memory()[0])
            rows = file.done()
            assert sum(row["i"] for row in rows) == sum(range(2000))
            tracemalloc.reset_peak()
            assert all(len(row["much"]) == 1000 for row in rows)
            now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held[-1] - held[1] < 200_000 and peak - now < 200_000, "2,000 rows are 2 MB"
    path.unlink(), path.with_name("p.jsonl.commit").unlink()
    RunFile(path).close()
    assert rows[-1]["i"] == 1999 and len(rows) == 2000


def test_a_commit_that_ends_within_a_row_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    write_rest(path)
    path.with_name("p.jsonl.commit").write_text("10\n")
    with pytest.raises(StoreError, match="no row ends at byte 10"):
        RunFile(path)


def test_a_second_writer_is_refused(tmp_path):
    with RunFile(tmp_path / "p.jsonl"), pytest.raises(StoreError, match="another run"):
        RunFile(tmp_path / "p.jsonl")
    RunFile(tmp_path / "p.jsonl").close()


def test_a_second_writer_is_refused_also_when_it_begins_anew(tmp_path):
    path = tmp_path / "p.jsonl"
    with RunFile(path) as file:
        file.append([{"a": 1}])
        with pytest.raises(StoreError, match="another run"):
            RunFile(path, fresh=True)
        file.append([{"a": 2}])
    assert read_rows(path) == [{"a": 1}, {"a": 2}]


def test_who_begins_anew_leaves_the_former_rows_to_who_reads_them(tmp_path):
    path = tmp_path / "p.jsonl"
    write_rest(path)
    with RunFile(path) as file:
        rows = file.done()
        file.clear()
        file.append([{"a": 1}])
        assert list(file.done()) == [{"a": 1}] and len(rows) == 15 and rows[14]["image"] == "é4/2.png"
        with pytest.raises(StoreError, match="another run"):
            RunFile(path)
    path.write_bytes(b"damaged")
    with RunFile(path, fresh=True) as file:
        assert len(file.done()) == 0
    assert {f.name for f in tmp_path.iterdir()} - {".p.jsonl.lock"} == {"p.jsonl", "p.jsonl.commit"}


def _begin_anew(path, times):
    """Each time alone with its own rows, or refused."""
    for turn in range(times):
        mine = [{"pid": os.getpid(), "turn": turn, "i": i} for i in range(3)]
        try:
            with RunFile(path, fresh=True) as file:
                for row in mine:
                    file.append([row])
                if list(file.done()) != mine or read_rows(path) != mine:
                    os._exit(3)
        except StoreError as error:
            if "another run" not in str(error):
                os._exit(4)


def test_processes_that_begin_anew_at_once_never_mix_their_rows(tmp_path):
    writers = [spawn.Process(target=_begin_anew, args=(tmp_path / "p.jsonl", 60)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]


def test_a_number_that_json_does_not_have_is_refused_and_nothing_is_written(tmp_path):
    with RunFile(tmp_path / "p.jsonl") as file:
        file.append([{"a": 1}])
        with pytest.raises(StoreError, match="JSON"):
            file.append([{"a": 2}, {"a": float("nan")}])
        file.append([{"a": 3}])
        assert list(file.done()) == [{"a": 1}, {"a": 3}]


def test_undecodable_file_names_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    with RunFile(tmp_path / "p.jsonl") as file:
        file.append([{"image": name}])
        assert list(file.done()) == [{"image": name}]
    assert read_rows(tmp_path / "p.jsonl") == [{"image": name}]


def _write_endlessly(path):
    with RunFile(path) as file:
        batch = len(file.done()) // 3
        while True:
            file.append([{"batch": batch, "i": i} for i in range(3)])
            batch += 1


def test_a_killed_run_continues_at_a_batch_border(tmp_path):
    path = tmp_path / "p.jsonl"
    for killed in (10, 40):
        writer = spawn.Process(target=_write_endlessly, args=(path,))
        writer.start()
        deadline = time.monotonic() + 30
        while (not path.exists() or path.read_bytes().count(b"\n") < killed) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    with RunFile(path) as file:
        rows = list(file.done())
    assert len(rows) >= 39 and rows == [{"batch": n // 3, "i": n % 3} for n in range(len(rows))] and len(rows) % 3 == 0


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), max_size=3), junk=st.binary(max_size=30))
def test_interruptions_leave_no_trace(tmp_path_factory, cuts, junk):
    folder = tmp_path_factory.mktemp("run")
    whole = write_rest(folder / "whole.jsonl")
    for cut in sorted(cuts):
        write_rest(folder / "p.jsonl", BATCHES[:cut])
        with open(folder / "p.jsonl", "ab") as file:
            file.write(junk)
    assert write_rest(folder / "p.jsonl") == whole
