"""Files are whole or absent; equal values have equal names."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from fgvr.errors import StoreError
from fgvr.utils.files import atomic_write, file_lock, read_json, sha256_bytes, sha256_file, short_hash, write_json

spawn = multiprocessing.get_context("spawn")


def test_a_write_makes_folders_and_leaves_nothing_else_behind(tmp_path):
    atomic_write(tmp_path / "a" / "b.txt", "é")
    atomic_write(tmp_path / "a" / "b.txt", b"second")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"second"


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    atomic_write(tmp_path / "f", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_others_may_read_what_is_written(tmp_path):
    umask = os.umask(0o022)
    try:
        atomic_write(tmp_path / "f", "x")
    finally:
        os.umask(umask)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_equal_values_give_equal_bytes(tmp_path):
    one, two = write_json(tmp_path / "1", {"b": [1, 2.5], "a": "é"}), write_json(tmp_path / "2", {"a": "é", "b": [1, 2.5]})
    assert one.read_bytes() == two.read_bytes()
    assert read_json(one) == {"a": "é", "b": [1, 2.5]}


def test_json_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(StoreError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


def test_hashes_agree(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == sha256_bytes(b"abc") == sha256_bytes(b"abc").lower()


def test_a_short_hash_ignores_the_order_of_keys_but_not_values():
    assert short_hash({"a": 1, "b": (1, 2)}) == short_hash({"b": [1, 2], "a": 1})
    assert short_hash({"a": 1}) != short_hash({"a": 2})
    assert len(short_hash(None)) == 12


def test_a_lock_excludes_other_threads(tmp_path):
    inside: list[int] = []

    def work():
        with file_lock(tmp_path / "lock"):
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside


def test_waiting_too_long_for_a_lock_is_an_error_that_names_it(tmp_path):
    with (
        file_lock(tmp_path / "lock"),
        pytest.raises(StoreError, match=r"another process has held .*lock"),
        file_lock(tmp_path / "lock", timeout=0.05),
    ):
        pass


def _hold(path):
    with file_lock(path):
        (path.parent / "held").touch()
        time.sleep(60)


def test_a_killed_holder_frees_its_lock(tmp_path):
    holder = spawn.Process(target=_hold, args=(tmp_path / "lock",))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    holder.kill()
    holder.join()
    entered = False
    with file_lock(tmp_path / "lock", timeout=1):
        entered = True
    assert entered and holder.exitcode == -signal.SIGKILL
