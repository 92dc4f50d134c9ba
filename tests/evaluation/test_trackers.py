"""metrics.jsonl, and what a tracker of accelerate's is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgvr.errors import ConfigError
from fgvr.evaluation import report, trackers


class Told:
    """A tracker at accelerate's seam."""

    requires_logging_directory = False
    made: list[Told] = []  # noqa: RUF012 (one list for the test)

    def __init__(self, **options) -> None:
        self.options, self.config, self.rows, self.finished = options, {}, [], 0
        Told.made.append(self)

    def start(self) -> None:
        if self.options.get("run_name") == "absent":
            raise ModuleNotFoundError("No module named 'absent'")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    from accelerate import tracking

    Told.made.clear()
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Told)
    return Told.made


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / trackers.FILE).read_text().splitlines()]


def test_every_batch_and_the_end_are_told_to_the_file_and_to_the_tracker(run, classes, tmp_path: Path, told):
    predictions = run(30)
    made = report.make_report(predictions, classes=classes, dataset="d", trigger="t", model_loads={"mllm": 1}, path=tmp_path)
    with trackers.tracked("wandb", tmp_path, "evaluate/abc", {"trigger": {"form": "joint"}, "runs": [1, 2], "seed": 0}) as tracker:
        for start in (0, 10, 20):
            tracker.batch(predictions[start : start + 10])
        tracker.finish(made)
    (one,) = told
    assert one.options == {"run_name": "fgvr", "name": "evaluate/abc"} and one.finished == 1
    assert one.config == {"trigger.form": "joint", "runs": "[1, 2]", "seed": 0}
    assert [step for step, _ in one.rows] == [10, 20, 30, 30]
    assert [{"step": step, **values} for step, values in one.rows] == rows(tmp_path)
    last, final = rows(tmp_path)[-2:]
    assert last["top1"] == pytest.approx(made.top1) and last["slow_rate"] == pytest.approx(made.slow_rate)
    assert final["final/top1"] == made.top1 and final["final/model_loads/mllm"] == 1 and "final/cost/mllm_calls" in final


def test_a_resumed_run_goes_on_where_what_was_saved_ends(run, tmp_path: Path):
    predictions = run(30)
    with trackers.tracked(None, tmp_path, "r", {}) as tracker:
        for start in (0, 10, 20):
            tracker.batch(predictions[start : start + 10])
    whole = rows(tmp_path)
    with open(tmp_path / trackers.FILE, "a") as file:
        file.write('{"step": 40, "half a li')
    with trackers.tracked(None, tmp_path, "r", {}) as tracker:
        tracker.resume(predictions[:20])
        assert [row["step"] for row in rows(tmp_path)] == [10, 20]
        tracker.batch(predictions[20:])
    assert rows(tmp_path) == whole


def test_a_batch_without_a_readable_image_adds_no_figures(run, tmp_path: Path):
    with trackers.tracked(None, tmp_path, "r", {}) as tracker:
        tracker.batch([])
        tracker.batch(run(10))
        tracker.batch([])
    assert [row["step"] for row in rows(tmp_path)] == [10]


def test_a_tracker_ends_with_a_run_that_fails(tmp_path: Path, told):
    with pytest.raises(ZeroDivisionError), trackers.tracked("wandb", tmp_path, "r", {}):
        raise ZeroDivisionError
    assert told[0].finished == 1


def test_a_missing_package_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told):
    monkeypatch.setattr(trackers, "PROJECT", "absent")
    with pytest.raises(ConfigError, match="pip install wandb"), trackers.tracked("wandb", tmp_path, "r", {}):
        raise AssertionError("not reached")


def test_tensorboard_gets_the_figures(run, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    predictions = run(20)
    with trackers.tracked("tensorboard", tmp_path, "r", {"seed": 0}) as tracker:
        tracker.batch(predictions[:10])
        tracker.batch(predictions[10:])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("slow_rate")] == [10, 20]
