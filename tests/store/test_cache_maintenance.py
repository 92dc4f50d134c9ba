"""mode=cache: the store is told, pruned and verified, and a run after it gives the same."""

from __future__ import annotations

import json
import sqlite3

import pytest

import fgvr
from fgvr import modes
from fgvr.errors import ConfigError
from fgvr.modes import runs
from fgvr.runtime.pool import close_shared
from fgvr.session import Session
from fgvr.store.cache import SqliteCache

SMALL = ("models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.shots=2", "dataset.calibration=0")


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


def cache(*words: str):
    return modes.perform(fgvr.load_config("mode=cache", *words))


def test_a_store_that_does_not_exist_is_empty_and_is_not_made(home):
    for action in ("stats", "prune", "verify"):
        assert (cache(f"action={action}").entries, cache(f"action={action}").file_bytes) == (0, 0)
    assert not (home / "store").exists()


def test_stats_prune_and_verify_tell_what_they_found(home, capsys):
    with SqliteCache(home / "store" / "cache.sqlite") as store:
        store.put({str(i): bytes(1000) for i in range(10)})
    assert (cache().entries, cache().bytes) == (10, 10_000)
    assert cache("action=prune", "store.limit=4000").dropped == 6
    with sqlite3.connect(home / "store" / "cache.sqlite") as other:
        (key,) = other.execute("SELECT key FROM entries LIMIT 1").fetchone()
        other.execute("UPDATE entries SET value = x'00' WHERE key = ?", (key,))
    other.close()
    found = cache("action=verify")
    assert (found.damaged, found.entries) == ((key,), 3)
    assert cache("action=verify").damaged == ()
    assert "all whole" in str(cache("action=verify"))
    modes.run(fgvr.load_config("mode=cache", "logging=json"))
    assert json.loads(capsys.readouterr().out)["entries"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["action=purge"], "stats, prune, verify"),
        (["action=prune", "store.limit=null"], "store.limit=2GiB"),
        (["store.limit=lots"], "2GiB"),
    ],
)
def test_what_means_nothing_is_refused_with_what_would(words, message):
    with pytest.raises(ConfigError, match=message):
        cache(*words)


def test_a_run_keeps_the_store_within_its_limit_and_gives_the_same(tmp_path):
    def run(home: str, *words: str) -> list[str]:
        report = fgvr.evaluate(fgvr.load_config(*SMALL, f"paths.home={tmp_path / home}", *words))
        close_shared()
        return [json.loads(line)["prediction"] for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]

    assert run("small", "store.limit=4000") == run("large") == run("off", "store.enabled=false")
    stored = {name: modes.perform(fgvr.load_config("mode=cache", f"paths.home={tmp_path / name}")).bytes for name in ("small", "large")}
    assert stored["small"] <= 4000 * 17 // 16 + 2000 < stored["large"]
    assert not Session(fgvr.load_config(f"paths.home={tmp_path / 'off'}")).store_path.exists()
