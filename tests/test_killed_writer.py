"""Two processes on one store, one of them killed: the store is whole, the other one never notices, and little work is done twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import fgvr
from fgvr import modes
from fgvr.runtime.pool import close_shared

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("models=fake", "dataset.genera=[3,3]", "dataset.calibration=0", "logging=quiet", "evaluation.batch_size=4", "dataset.shots=6")
BUILDING = (*SMALL, "dataset.seed=9000", "dataset.test_per_class=1", "models.mllm.batch_size=1")
EVALUATING = (*SMALL, "dataset.seed=9001", "dataset.test_per_class=40", "trigger=always")
pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


def start(home: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "discovering.py", f"paths.home={home}", *words], cwd=ROOT, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors.decode()


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not ready():
        assert process.poll() is None, f"ended with {process.returncode} before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def rows(home: Path) -> list[dict]:
    return [json.loads(line) for file in (home / "runs" / "evaluate").glob("*/predictions.jsonl") for line in file.read_text().splitlines()]


def answers(found: list[dict]) -> list[tuple]:
    return [(row["image"], row["prediction"], row["confidence"], row["by"], row["slow"]) for row in found]


def verify(home: Path) -> None:
    found = modes.perform(fgvr.load_config("mode=cache", "action=verify", f"paths.home={home}"))
    assert found.damaged == () and found.entries > 0
    with closing(sqlite3.connect(home / "store" / "cache.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_evaluating_one_is_killed(tmp_path: Path) -> None:
    home, whole = tmp_path / "shared", tmp_path / "undisturbed"
    fgvr.build_knowledge_base(fgvr.load_config(*EVALUATING, f"paths.home={home}"))
    close_shared()
    doomed = start(home, "mode=evaluate", *EVALUATING)
    builder = start(home, "mode=build_knowledge_base", *BUILDING)
    kill_when(doomed, lambda: any(int(f.read_text()) > 0 for f in (home / "runs").glob("evaluate/*/predictions.jsonl.commit")))
    finish(builder)
    verify(home)
    (file,) = (home / "runs" / "evaluate").glob("*/predictions.jsonl")
    committed = file.read_bytes()[: int(file.with_name(file.name + ".commit").read_text())]
    finish(start(home, "mode=evaluate", *EVALUATING))
    assert file.read_bytes().startswith(committed) and 0 < len(committed) < file.stat().st_size, "it was killed in the midst of its work"
    verify(home)
    again = rows(home)
    fgvr.evaluate(fgvr.load_config(*EVALUATING, f"paths.home={whole}"))
    assert answers(again) == answers(rows(whole)) and len(again) == 240
    for work in ("encoder_forwards", "mllm_calls"):  # what the killed one had stored of its last batch is not done, nor told, again
        assert 240 - 4 <= sum(row["cost"][work] for row in again) <= 240


@pytest.mark.slow
def test_the_building_one_is_killed(tmp_path: Path) -> None:
    home, whole = tmp_path / "shared", tmp_path / "undisturbed"
    fgvr.build_knowledge_base(fgvr.load_config(*EVALUATING, f"paths.home={home}"))
    close_shared()
    doomed = start(home, "mode=build_knowledge_base", *BUILDING)
    other = start(home, "mode=evaluate", *EVALUATING)
    kill_when(doomed, lambda: any(entries(journal) > 40 for journal in (home / "knowledge").glob("birds/*.partial/journal.sqlite")))
    finish(other)
    verify(home)
    assert len(list((home / "knowledge").glob("birds/*/manifest.json"))) == 1, "half a base is none"
    assert len(rows(home)) == 240
    resumed = fgvr.build_knowledge_base(fgvr.load_config(*BUILDING, f"paths.home={home}"))
    close_shared()
    undisturbed = fgvr.build_knowledge_base(fgvr.load_config(*BUILDING, f"paths.home={whole}"))
    assert resumed.manifest and undisturbed.manifest and resumed.manifest.content_hash == undisturbed.manifest.content_hash
    verify(home)


def entries(journal: Path) -> int:
    """Committed ones; 0 while the file is just being made."""
    try:
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
            return database.execute("SELECT COUNT(*) FROM entries").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
