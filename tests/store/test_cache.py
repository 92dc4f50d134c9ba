"""The cache keeps what it is given, through crashes, other writers and damage."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvr.errors import StoreError
from fgvr.protocols import Cache
from fgvr.store.cache import LayeredCache, MemoryCache, NoCache, SqliteCache

spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def cache(tmp_path):
    with SqliteCache(tmp_path / "store" / "cache.sqlite") as cache:
        yield cache


def test_a_file_deleted_under_an_open_cache_begins_anew(cache):
    cache.put({"a": b"1"})
    shutil.rmtree(cache.path.parent)
    assert cache.get(["a"]) == {}
    cache.put({"b": b"2"})
    with SqliteCache(cache.path) as other:
        assert other.get(["a", "b"]) == {"b": b"2"}


def test_what_is_put_can_be_got_and_the_rest_is_absent(cache):
    cache.put({"a": b"1", "b": b""})
    assert cache.get(["a", "b", "c", "a"]) == {"a": b"1", "b": b""}


def test_a_second_opening_finds_what_the_first_one_left(tmp_path):
    with SqliteCache(tmp_path / "c.sqlite") as first:
        first.put({"a": b"1"})
    with SqliteCache(tmp_path / "c.sqlite") as second:
        assert second.get(["a"]) == {"a": b"1"}


def test_more_keys_than_a_query_may_hold_are_fine(cache):
    entries = {f"{i}": str(i).encode() for i in range(2500)}
    cache.put(entries)
    assert cache.get(entries) == entries


def test_stats_count_entries_and_bytes(cache):
    cache.put({"a": b"12345", "b": b"123"})
    assert (cache.stats().entries, cache.stats().bytes) == (2, 8)


def test_prune_drops_the_least_recently_used_first(cache):
    for name in "abcd":
        cache.put({name: bytes(100)})
    cache.get(["a"])
    assert cache.prune(200) == 2
    assert set(cache.get("abcd")) == {"a", "d"}


def test_pruning_gives_the_space_back_to_the_disk(cache):
    cache.put({str(i): os.urandom(10_000) for i in range(100)})
    cache.prune(0)
    cache.close()
    assert cache.path.stat().st_size < 100_000


def test_a_size_limit_holds_while_writing(tmp_path):
    with SqliteCache(tmp_path / "c.sqlite", max_bytes=10_000) as cache:
        for i in range(100):
            cache.put({str(i): bytes(1000)})
        assert cache.stats().bytes <= 11_000
        assert "99" in cache.get(["99"])


def test_a_value_that_rotted_counts_as_absent_and_verify_names_it(cache):
    cache.put({"good": b"fine", "bad": b"fine"})
    with sqlite3.connect(cache.path) as other:
        other.execute("UPDATE entries SET value = x'00' WHERE key = 'bad'")
    other.close()
    assert cache.get(["good", "bad"]) == {"good": b"fine"}
    assert cache.verify() == ("bad",)
    assert cache.verify() == ()
    cache.put({"bad": b"mended"})
    assert cache.get(["bad"]) == {"bad": b"mended"}


def test_a_file_that_is_no_database_is_an_error_with_the_cure(tmp_path):
    (tmp_path / "c.sqlite").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(StoreError, match=r"delete .*c\.sqlite"):
        SqliteCache(tmp_path / "c.sqlite").get(["a"])


def test_a_damaged_database_is_an_error_with_the_cure(tmp_path):
    path = tmp_path / "c.sqlite"
    with SqliteCache(path) as cache:
        cache.put({str(i): os.urandom(3000) for i in range(50)})
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="delete"), SqliteCache(path) as cache:
        cache.verify()


def test_a_folder_that_cannot_be_made_is_an_error_with_the_cure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"paths\.home"):
        SqliteCache(tmp_path / "file" / "c.sqlite").get(["a"])


def test_several_threads_may_use_one_cache(cache):
    def work(name: str) -> None:
        for i in range(50):
            cache.put({f"{name}{i}": name.encode()})
            assert cache.get([f"{name}{i}"])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.stats().entries == 200


def _write(path: Path, name: str, batches: int) -> None:
    with SqliteCache(path) as cache:
        for batch in range(batches):
            cache.put({f"{name}/{batch}/{i}": bytes(500) for i in range(10)})


def test_two_processes_may_write_at_once(tmp_path):
    path = tmp_path / "c.sqlite"
    writers = [spawn.Process(target=_write, args=(path, name, 40)) for name in ("left", "right")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    with SqliteCache(path) as cache:
        assert cache.stats().entries == 800
        assert cache.verify() == ()


def test_a_killed_writer_leaves_whole_puts_only(tmp_path):
    path = tmp_path / "c.sqlite"
    writer = spawn.Process(target=_write, args=(path, "x", 10**9))
    writer.start()
    with SqliteCache(path) as cache:
        deadline = time.monotonic() + 30
        while cache.stats().entries < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        entries = cache.stats().entries
        assert entries >= 100 and entries % 10 == 0
        assert cache.verify() == ()
        cache.put({"after": b"life"})
        assert cache.get(["after"])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_disturb_its_parent(cache):
    cache.put({"parent": b"1"})
    pid = os.fork()
    if pid == 0:
        cache.put({"child": b"2"})
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert set(cache.get(["parent", "child"])) == {"parent", "child"}


def test_the_memory_cache_forgets_the_least_recently_used():
    cache = MemoryCache(max_bytes=3)
    cache.put({"a": b"1", "b": b"2", "c": b"3"})
    cache.get(["a"])
    cache.put({"d": b"4"})
    assert set(cache.get("abcd")) == {"a", "c", "d"}
    assert cache.stats().bytes == 3


def test_no_cache_remembers_nothing():
    cache = NoCache()
    cache.put({"a": b"1"})
    assert cache.get(["a"]) == {}


def test_a_layered_cache_brings_far_entries_near():
    front, back = MemoryCache(), MemoryCache()
    back.put({"a": b"1"})
    layered = LayeredCache(front, back)
    layered.put({"b": b"2"})
    assert layered.get(["a", "b", "c"]) == {"a": b"1", "b": b"2"}
    assert front.get(["a", "b"]) == back.get(["a", "b"])


@pytest.mark.parametrize("kind", [NoCache, MemoryCache, lambda: LayeredCache(NoCache(), NoCache())])
def test_every_cache_has_the_protocols_methods(kind):
    cache: Cache = kind()
    cache.put({})
    assert cache.get([]) == {}


@settings(max_examples=25, deadline=None)
@given(puts=st.lists(st.dictionaries(st.text(max_size=5).filter(lambda k: "\x00" not in k and k.isprintable()), st.binary(max_size=50))))
def test_a_cache_behaves_like_a_dictionary(tmp_path_factory, puts):
    model: dict[str, bytes] = {}
    with SqliteCache(tmp_path_factory.mktemp("property") / "c.sqlite") as cache:
        for entries in puts:
            cache.put(entries)
            model.update(entries)
        assert cache.get([*model, "never put"]) == model
        assert cache.stats().bytes == sum(map(len, model.values()))
