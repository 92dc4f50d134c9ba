"""mode=memory without a server: figures of this machine, and clean-up that touches nothing a living run may need."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import fgvr
from fgvr import modes
from fgvr.runtime import machine
from fgvr.runtime.pool import close_shared
from fgvr.store import maintenance
from fgvr.utils.files import file_lock
from fgvr.utils.text import format_bytes


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


def answer(action: str, capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    modes.run(fgvr.load_config("mode=memory", f"action={action}", "models=fake", "logging=json", *words))
    return json.loads(capsys.readouterr().out)


def test_stats_have_the_servers_fields(capsys) -> None:
    found = answer("stats", capsys, "runtime.budget=8GiB")
    assert (found["total_models"], found["total_memory_usage"], found["memory_limit"]) == (0, 0, 8 << 30)
    assert found["formatted_limit"] == "8.00 GiB" and found["formatted_usage"] == "0 B"
    assert 0 < found["system_available"] <= found["system_total"]
    assert found["formatted_system_total"] == format_bytes(found["system_total"])
    assert isinstance(found["memory_pressure"], bool) and found["server"] is None and found["formatted_system_available"].endswith("iB")


def test_models_are_named_with_their_sizes_and_not_loaded(capsys) -> None:
    found = answer("models", capsys)["models"]
    assert [m["role"] for m in found] == ["encoder", "mllm", "joint"]
    assert {(m["state"], m["tier"], m["loads"]) for m in found} == {("absent", "disk", 0)}
    assert all(m["bytes"] > 0 for m in found)
    tiny = answer("models", capsys, "models=tiny")["models"]
    assert all(m["file_bytes"] > 1_000_000 for m in tiny[:2])
    missing = answer("models", capsys, "models.mllm.loader=qwen", "models.mllm.source=/nowhere")["models"][1]
    assert missing["bytes"] is None and "/nowhere" in missing["error"]
    assert sum(fgvr.shared_pool().loads.values()) == 0


def test_pressure_and_system_speak_of_this_machine(capsys) -> None:
    found = answer("pressure", capsys, "runtime.host_low.used=1.0", "runtime.host_low.free=0")
    assert (found["pressure"], found["level"], found["recommended"]) == (False, "ok", [])
    low = answer("pressure", capsys, "runtime.host_low.free=1000000GiB")
    assert low["pressure"] is True and "less than" in low["host_low"]
    system = answer("system", capsys)
    assert system["ram_total"] > 0 and system["devices"][0]["name"] == "cpu"


@pytest.mark.parametrize("action", ["stats", "pressure", "models", "system", "cleanup"])
def test_every_answer_can_be_shown_to_people(action: str, capsys) -> None:
    modes.run(fgvr.load_config("mode=memory", f"action={action}", "models=fake"))
    assert len(capsys.readouterr().out) > 40


def test_only_a_server_has_a_limit_and_a_wrong_action_names_the_right_ones() -> None:
    with pytest.raises(fgvr.ConfigError, match=r"only a running server.*runtime\.budget"):
        modes.perform(fgvr.load_config("mode=memory", "action=limit", "limit=18GiB", "models=fake"))
    with pytest.raises(fgvr.ConfigError, match="stats, pressure, models, system, cleanup, limit"):
        modes.perform(fgvr.load_config("mode=memory", "action=explode", "models=fake"))


def test_gpus_are_what_their_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def module(count: int, *, driver: bool) -> ModuleType:
        def init() -> None:
            if not driver:
                raise NVMLError("no driver")

        made = ModuleType("pynvml")
        made.__dict__.update(
            NVMLError=NVMLError,
            nvmlInit=init,
            nvmlShutdown=lambda: None,
            nvmlDeviceGetCount=lambda: count,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=100 + index, free=60, used=40),
        )
        return made

    monkeypatch.setitem(__import__("sys").modules, "pynvml", module(2, driver=True))
    assert [(g.name, g.total, g.free, g.allocated) for g in machine.gpus()] == [("cuda:0", 100, 60, 40), ("cuda:1", 101, 60, 40)]
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module(2, driver=False))
    assert machine.gpus() == []


# --- clean-up ----------------------------------------------------------------------------------------------------------------


def aged(path: Path, seconds: float, content: bytes = b"x" * 1000) -> Path:
    """A file last written so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - seconds,) * 2)
    for folder in (path.parent, path.parent.parent):
        os.utime(folder, (time.time() - seconds,) * 2)
    return path


DAY = maintenance.DAY


def test_a_dead_builds_workspace_goes_after_a_day_and_not_before(home: Path) -> None:
    dead = aged(home / "knowledge/birds/aaa.partial/journal.sqlite", 2 * DAY).parent
    recent = aged(home / "knowledge/birds/bbb.partial/journal.sqlite", DAY / 2).parent
    base = aged(home / "knowledge/birds/ccc/manifest.json", 9 * DAY)
    found = {left.path: left for left in maintenance.remove_stale_files(home)}
    assert not dead.exists() and recent.exists() and base.exists()
    assert found[dead].kept == "" and found[dead].bytes == 1000 and found[dead].age_seconds == pytest.approx(2 * DAY, abs=60)
    assert "goes on" in found[recent].kept and base.parent not in found


def test_a_workspace_somebody_holds_is_never_touched_however_old(home: Path) -> None:
    old = aged(home / "knowledge/birds/aaa.partial/journal.sqlite", 100 * DAY).parent
    with file_lock(home / "knowledge/birds/aaa.lock"):
        [left] = maintenance.remove_stale_files(home)
        assert left.kept == "in use" and old.exists()
    [left] = maintenance.remove_stale_files(home)
    assert left.kept == "" and not old.exists()
    assert (home / "knowledge/birds/aaa.lock").exists(), "an empty lock file may just have been opened by somebody"


def test_a_replaced_base_goes_only_when_the_new_one_is_whole(home: Path) -> None:
    aged(home / "knowledge/birds/aaa/manifest.json", 10)
    gone = aged(home / "knowledge/birds/aaa.old/manifest.json", 10).parent
    only = aged(home / "knowledge/birds/bbb.old/manifest.json", 100 * DAY).parent
    found = {left.path: left.kept for left in maintenance.remove_stale_files(home)}
    assert found == {gone: "", only: "the only copy of this base; the next build puts it back"}
    assert only.exists() and not gone.exists()


def test_temporary_files_go_after_an_hour_and_nothing_that_only_looks_like_one(home: Path) -> None:
    dead = aged(home / "runs/evaluate/abc/.report.json.0123abcd.tmp", 2 * maintenance.HOUR)
    recent = aged(home / "runs/evaluate/abc/.report.html.0123abcd.tmp", 60)
    others = [aged(home / f"runs/evaluate/abc/{name}", 9 * DAY) for name in ("notes.tmp", ".x.tmp", "report.json", "a.0123abcd.tmp")]
    data = aged(home / "data/photos/.x.jpg.0123abcd.tmp", 9 * DAY)
    found = {left.path: left.kept for left in maintenance.remove_stale_files(home)}
    assert found == {dead: "", recent: "may be being written"}
    assert not dead.exists() and recent.exists() and data.exists() and all(other.exists() for other in others)


def test_a_link_is_not_followed(home: Path, tmp_path: Path) -> None:
    precious = aged(tmp_path / "elsewhere/precious.txt", 9 * DAY)
    (home / "knowledge/birds").mkdir(parents=True)
    (home / "knowledge/birds/aaa.partial").symlink_to(precious.parent)
    assert maintenance.remove_stale_files(home) == [] and precious.exists()


def test_cleanup_says_what_and_how_much(home: Path, capsys) -> None:
    aged(home / "knowledge/birds/aaa.partial/journal.sqlite", 2 * DAY)
    found = answer("cleanup", capsys)
    assert [(left["kind"], left["kept"]) for left in found["leftovers"]] == [("unfinished base", "")]
    assert (found["removed_bytes"], found["formatted_removed"]) == (1000, "1000 B")
    assert answer("cleanup", capsys)["leftovers"] == []
