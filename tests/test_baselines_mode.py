"""mode=baselines: every simpler method is a run like any other, and they stand in one table."""

import json

import pytest

import fgvr
from fgvr import modes
from fgvr.errors import ConfigError
from fgvr.evaluation import compare, records
from fgvr.modes.comparing_baselines import BASELINES, OURS
from fgvr.modes.showing import to_text

WORLD = ("models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=3", "dataset.shots=2", "dataset.calibration=0")


def config(home, *words):
    return fgvr.load_config("mode=baselines", f"paths.home={home}", *WORLD, *words)


def test_every_baseline_is_a_run_that_can_be_scored_and_compared(home):
    found = modes.perform(config(home))
    assert list(found.reports) == [*BASELINES] and set(found.p) == set(BASELINES) - {OURS}
    rows = {row["name"]: row for row in json.loads((found.path / "baselines.json").read_text())}
    for name, report in found.reports.items():
        answers = records.read(report.path / "predictions.jsonl")
        assert len(answers) == 12 == report.n and rows[name]["top1"] == report.top1
        assert rows[name]["top1_interval"][0] <= report.top1 <= rows[name]["top1_interval"][1]
        assert {p.by for p in answers} == ({"slow"} if name.startswith("mllm") else {"fast"}) or name == OURS
    assert rows["mllm"]["mllm_calls_asked"] > 0 == rows["knn"]["mllm_calls_asked"]
    shortlists = [len(p.slow.probabilities) for p in records.read(found.reports["mllm"].path / "predictions.jsonl")]
    assert set(shortlists) == {4}, "the MLLM alone sees every class"

    pair = compare.compare([found.reports["knn"].path, found.reports["linear_probe"].path])
    assert len(pair.differences) == 1
    [table] = [part for part in to_text(found) if hasattr(part, "row_count")]
    assert table.row_count == len(rows)

    before = fgvr.shared_pool().counters.snapshot()
    assert modes.perform(config(home)).rows() == found.rows()
    assert fgvr.shared_pool().counters.snapshot() == before, "finished runs are shown again"


def test_some_of_them_can_be_asked_for(home):
    found = modes.perform(config(home, "baselines.which=[knn,zero_shot]"))
    assert list(found.reports) == ["knn", "zero_shot", OURS]
    assert any("never read these names" in note for note in found.reports["zero_shot"].notes)


@pytest.mark.parametrize("word", ["baselines.which=[knn,svm]", "baselines.which=[]", "baselines.neighbours=0"])
def test_what_there_is_not_is_refused_with_what_there_is(home, word):
    with pytest.raises(ConfigError, match=r"must be"):
        modes.perform(config(home, word))
