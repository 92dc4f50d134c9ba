"""`runtime.device=[...]`: building and evaluating on several devices gives the rows of one, and each device is reported."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fgvr
from fgvr.cli import main
from fgvr.errors import RuntimeConflict
from fgvr.evaluation import report as reports
from fgvr.runtime import timeline
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders.fake import FakeLoader
from fgvr.runtime.pool import close_shared, shared
from fgvr.types import ModelSpec

WORLD = ("models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=12", "dataset.shots=4", "dataset.calibration=0")
SMALL = ("evaluation.batch_size=4", "models.encoder.batch_size=2", "models.mllm.batch_size=2", "trigger=always", "store.enabled=false")
SIZES = ("models.encoder.source='encoder 5GiB'", "models.mllm.source='mllm 12GiB'", "runtime.budget=18GiB")
OURS = tuple(f"models.{role}.loader={__name__}.LOADER" for role in ("encoder", "mllm"))
TWO = "runtime.device=[simulated:24GiB,simulated:24GiB]"
FAILING: list[str] = []  # devices that fail from their fifth batch of pictures on
DONE: Counter[str] = Counter()


class Loader(FakeLoader):
    def load(self, spec: ModelSpec, device: Device) -> Any:
        model = super().load(spec, device)
        if spec.role == "encoder":
            compute = model.encode

            def encode(images: Any) -> Any:
                time.sleep(0.005)  # the other device has its turn
                DONE[device.name] += 1
                if device.name in FAILING and DONE[device.name] > 4:
                    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
                return compute(images)

            model.encode = encode
        return model


LOADER = Loader()


@pytest.fixture(autouse=True)
def own_pool() -> Iterator[None]:
    close_shared()
    yield
    FAILING.clear()
    DONE.clear()
    close_shared()


def run(*words: str) -> tuple[fgvr.Report, list[dict[str, Any]]]:
    """The report, and the rows without what they cost."""
    report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *WORLD, *SMALL, *SIZES, *OURS, *words))
    rows = [json.loads(line) for line in (report.path / "predictions.jsonl").read_text().splitlines()]
    return report, [{key: value for key, value in row.items() if key != "cost"} for row in rows]


def test_two_devices_give_the_rows_of_one_and_are_reported(home: Path) -> None:
    _, expected = run("runtime.device=simulated:24GiB", f"paths.home={home / 'one'}")
    close_shared()
    report, rows = run(TWO)
    assert rows == expected and len(rows) == 4 * 12
    body = json.loads((report.path / "report.json").read_text())
    assert [one["device"] for one in body["devices"]] == ["simulated:0", "simulated:1"]
    for number, one in enumerate(body["devices"]):
        assert 0 < one["peak_bytes"] <= one["budget"] == 18 << 30
        recorded = timeline.read(report.path / timeline.numbered(number))
        assert all(max(sample.ledger, sample.device_allocated) <= 18 << 30 for sample in recorded.samples)
        assert any(event.kind == "lease" for session in recorded.sessions for event in session.events)
    assert "simulated:1: at most" in (report.path / reports.PAGE).read_text()
    with pytest.raises(RuntimeConflict, match="lives on simulated:0, simulated:1; simulated needs a new process"):
        run("runtime.device=simulated:24GiB")
    run(TWO, "run.fresh=true")
    assert len(list(report.path.glob("memory-*.jsonl"))) == 1


def test_a_device_that_fails_in_the_middle_is_said_and_the_other_finishes(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, expected = run(TWO, f"paths.home={home / 'whole'}")
    close_shared()
    DONE.clear()
    FAILING.append("simulated:1")
    with caplog.at_level(logging.WARNING):
        report, rows = run(TWO)
    assert rows == expected
    (note,) = [note for note in report.notes if "simulated:1" in note]
    assert note == shared().notes[0] and note in caplog.text
    assert "uncorrectable ECC error" in note and "the other devices go on" in note


def test_the_plan_and_the_memory_are_those_of_each_device(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORLD, *SIZES, *OURS, TWO, "logging=json"]
    assert main(["mode=plan", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["budget"] == 18 << 30 and "2 devices, each with a copy of every model" in plan["facts"][-1]
    assert main(["mode=memory", "action=stats", *words]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert [one["device"] for one in stats["devices"]] == ["simulated:0", "simulated:1"]
    assert stats["memory_limit"] == 2 * stats["devices"][0]["memory_limit"] == 36 << 30
    assert main(["mode=memory", "action=models", *words]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2 * 3
    assert main(["mode=memory", "action=system", *words]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["devices"]][:2] == ["simulated:0", "simulated:1"]


@pytest.mark.parametrize("device", ["[cpu,cpu]", "[cpu,simulated:1GiB]", "[]", "3"])
def test_bad_devices_are_one_line_and_exit_2(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mode=plan", "models=fake", f"runtime.device={device}", "runtime.budget=auto"]) == 2
    assert "runtime.device" in capsys.readouterr().err
