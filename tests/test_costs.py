"""What a report says an evaluation cost is what the models themselves have counted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import fgvr
from fgvr import modes
from fgvr.evaluation import report as reports
from fgvr.modes.showing import to_text

SMALL = ("dataset.genera=[3,3]", "dataset.test_per_class=3", "dataset.calibration=0", "dataset.shots=2")
WORK = ("encoder_forwards", "mllm_calls", "prompt_tokens", "new_tokens")


@pytest.mark.parametrize("models", ["fake", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("slow", ["score", "reason"])
def test_calls_tokens_and_forwards_equal_the_models_own_counters(models: str, slow: str):
    words = ("mode=slowonly", f"models={models}", f"slow={slow}", *SMALL)
    fgvr.build_knowledge_base(fgvr.load_config(*words))
    before = fgvr.shared_pool().counters.snapshot()
    report = fgvr.evaluate(fgvr.load_config(*words))
    after = fgvr.shared_pool().counters.snapshot()
    counted = {name: getattr(after, name) - getattr(before, name) for name in WORK}
    assert {name: report.cost[name] for name in counted} == counted
    assert counted["encoder_forwards"] == 18 and counted["mllm_calls"] >= 18 and counted["prompt_tokens"] > 0
    assert (counted["new_tokens"] > 0) == (slow == "reason")


# --- asked and computed ------------------------------------------------------------------------------------------------------


def evaluated(home: Path, *words: str) -> fgvr.Report:
    return fgvr.evaluate(fgvr.load_config("mode=evaluate", "models=fake", *SMALL, f"paths.home={home}", *words))


def told(report: fgvr.Report) -> dict:
    return json.loads((report.path / "report.json").read_text())


def test_what_a_method_asks_does_not_depend_on_what_is_remembered(tmp_path: Path):
    """The second run finds everything in the store: it computes nothing, and asks as much."""
    first = evaluated(tmp_path, "trigger=always")
    asked, computed = told(first)["asked"], told(first)["computed"]
    assert asked == computed == {name: first.cost[name] for name in WORK} and asked["mllm_calls"] == 18
    again = evaluated(tmp_path, "trigger=always", "slow.weight=0.2")
    assert again.path != first.path and told(again)["asked"] == again.asked == asked
    assert told(again)["computed"] == dict.fromkeys(WORK, 0) == dict(again.computed)
    page = (again.path / "report.html").read_text()
    assert "Forwards or calls asked" in page and "Computed now" in page
    assert "18 asked, 0 computed now" in on_terminal(reports.terminal(again))


def test_comparisons_replays_and_baselines_tell_both(tmp_path: Path):
    home = f"paths.home={tmp_path}"
    first = evaluated(tmp_path, "trigger=always", "evaluation.record=all")
    second = evaluated(tmp_path, "trigger=random", "trigger.slow_rate=0.5")
    rows = modes.perform(fgvr.load_config("mode=compare", f"runs=[{first.path},{second.path}]")).rows
    everything = first.cost["mllm_calls"]
    assert [(row.mllm_calls_asked, row.mllm_calls_computed) for row in rows] == [(everything,) * 2, (round(18 * second.slow_rate), 0)]
    replayed = modes.perform(fgvr.load_config("mode=replay", f"predictions={first.path}", home, "trigger=random", "trigger.slow_rate=0.5"))
    assert replayed.asked["encoder_forwards"] == 18 and second.asked["mllm_calls"] <= replayed.asked["mllm_calls"] < everything
    assert dict(replayed.computed) == dict.fromkeys(WORK, 0)
    found = modes.perform(fgvr.load_config("mode=baselines", "models=fake", *SMALL, home, "baselines.which=[mllm_topk]", "trigger=always"))
    rows = {row["name"]: (row["mllm_calls_asked"], row["mllm_calls_computed"]) for row in found.rows()}
    assert rows == {"mllm_topk": (1.0, 0.0), "this configuration": (1.0, 0.0)}
    assert "asked" in on_terminal(*to_text(found))


def test_files_of_an_earlier_version_open_and_say_that_this_was_not_recorded(tmp_path: Path):
    run = evaluated(tmp_path, "trigger=always").path
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        del row["cost"]["asked"]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = json.loads((run / "report.json").read_text())
    del body["asked"], body["computed"]
    (run / "report.json").write_text(json.dumps(body))
    report = reports.load(run)
    assert report.asked == {} and report.cost["mllm_calls"] == 18
    assert "not recorded asked, 18 computed now" in on_terminal(reports.terminal(report))
    [row] = modes.perform(fgvr.load_config("mode=compare", f"runs={run.parent}")).rows
    assert (row.mllm_calls_asked, row.mllm_calls_computed) == (None, 18)
    replayed = modes.perform(fgvr.load_config("mode=replay", f"predictions={run}", f"paths.home={tmp_path}"))
    assert replayed.asked == {} and told(replayed)["asked"] is None


def on_terminal(*parts) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in parts:
        console.print(part)
    return console.file.getvalue()
