"""The doctor by the command line: its exit code, what it says where nothing can be written, and cures that are enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fgvr
from fgvr.cli import main
from fgvr.runtime.checkup import Room, cure
from fgvr.runtime.pool import close_shared
from fgvr.session import Session
from fgvr.types import ModelSpec

SMALL = ("dataset.genera=[2,2]", "dataset.test_per_class=1", "dataset.calibration=0", "dataset.shots=2")
QWEN = "models=qwen2_5_vl_7b"


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    close_shared()
    yield
    close_shared()


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    return {row["topic"]: row for row in json.loads(capsys.readouterr().out)["findings"]}


def examine(home: Path, *words: str) -> int:
    close_shared()
    return main(["mode=doctor", *SMALL, f"paths.home={home}", "logging.json=true", *words])


def test_the_exit_code_says_whether_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    well = examine(tmp_path, "models=fake")
    rows = found(capsys)
    ill = sorted(topic for topic, row in rows.items() if not row["well"])
    assert well == (3 if ill else 0) and set(ill) <= {"home"}, "of this machine only the disk may be nearly full"
    assert examine(tmp_path, "models=fake", f"models.mllm.source={tmp_path / 'nowhere'}", "models.mllm.loader=qwen") == 3
    said = capsys.readouterr()
    assert "checks found something to mend: " in said.err and "mllm files" in said.err and json.loads(said.out)["findings"]


@pytest.mark.parametrize("place", ["file/home", "file"])
def test_a_home_that_cannot_be_written_is_a_finding_in_the_table(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert examine(tmp_path / place, "models=fake") == 3
    rows = found(capsys)
    assert not rows["home"]["well"] and "paths.home=FOLDER" in rows["home"]["cure"]
    assert "dataset" in rows and rows["budget"]["well"], "what can be said is said"


def test_weights_that_are_not_on_this_machine_are_not_called_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        monkeypatch.setenv("TRANSFORMERS_OFFLINE", offline)
        assert examine(tmp_path, "models/mllm=qwen2_5_vl_7b", "trigger=never") == 3
        row = found(capsys)["mllm files"]
        assert not row["well"] and "not on this machine" in row["detail"] and "hf download Qwen/Qwen2.5-VL-7B-Instruct" in row["cure"]


@pytest.mark.parametrize("budget", ["600MiB", "200MiB", "90MiB"])
def test_the_cure_for_the_budget_is_enough(budget: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (f"runtime.budget={budget}", "models=tiny", "models.encoder.batch_size=512", "models.mllm.batch_size=64")
    assert examine(tmp_path, *settings) == 3
    row = found(capsys)["budget"]
    assert not row["well"] and row["cure"].startswith("write ")
    change = [word for word in row["cure"].split() if "=" in word]
    examine(tmp_path, *[word for word in settings if word.partition("=")[0] not in {w.partition("=")[0] for w in change}], *change)
    assert found(capsys)["budget"]["well"], f"{change} was named as the cure"


GIB = 1 << 30


@pytest.mark.parametrize("budget", [4, 8, 12, 16, 17, 20])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_cure_for_a_large_model_is_enough_or_none_is_promised(budget: int, device: str, tmp_path: Path) -> None:
    encoder = ModelSpec("encoder", "clip", "tiny", batch_size=32)
    mllm = ModelSpec("mllm", "transformers", "Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16", max_pixels=1003520, batch_size=16)
    room = Room((encoder, mllm), budget * GIB, device=device, most=budget * GIB)
    assert not room.fits
    words = [word for word in cure(room).split() if "=" in word]
    assert words and not any(word.startswith("runtime.budget") for word in words), "the device has no more"
    roomier = Room((encoder, mllm), budget * GIB, device=device, most=64 * GIB)
    assert cure(roomier).startswith("write ")
    cfg = fgvr.load_config("models=tiny", "models/mllm=qwen2_5_vl_7b", "models.mllm.batch_size=16", *words)
    specs = (encoder, Session(cfg).specs["mllm"])
    on = cfg.runtime.max_models
    assert Room(specs, budget * GIB, max_models=on, device=device).fits


def test_a_device_that_is_too_small_for_everything_gets_no_promise() -> None:
    assert "nothing known is enough" in cure(Room((ModelSpec("mllm", "transformers", "tiny"),), 1 << 20, most=1 << 20))
