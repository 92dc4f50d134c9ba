"""Runs beside each other, paired by image."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from fgvr.errors import ConfigError, DatasetError, StoreError
from fgvr.evaluation import compare, report
from fgvr.evaluation.records import to_line


@pytest.fixture
def finished(run, classes, tmp_path: Path):
    def make(
        name: str, *, shots: int = 4, seed: int = 0, drop: int = 0, trigger: str = "t", settings: dict | None = None, **kwargs
    ) -> Path:
        folder = tmp_path / name
        predictions = run(**kwargs)[drop:]
        made = report.make_report(predictions, classes=classes, dataset="d", trigger=trigger, model_loads={}, path=folder)
        report.write(made, folder)
        (folder / "predictions.jsonl").write_text("".join(map(to_line, predictions)))
        dataset = {"shots": shots, "split_seed": seed}
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "dataset": dataset} | (settings or {})))
        return folder

    return make


def test_the_difference_is_paired_and_tested_exactly(finished, run):
    a, b = finished("runs/a", slow_rate=0), finished("runs/b", slow_rate=0.4)
    [d] = compare.compare([a, b]).differences
    rights = [np.array([p.correct for p in run(slow_rate=rate)]) for rate in (0, 0.4)]
    only_a, only_b = int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum())
    assert (d.only_a, d.only_b, d.n, d.left_out) == (only_a, only_b, 200, 0) and only_b > 0
    assert d.mcnemar == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert d.gain == pytest.approx(rights[1].mean() - rights[0].mean()) and d.top1 == (rights[0].mean(), rights[1].mean())
    assert d.image_bootstrap[0] < d.gain < d.image_bootstrap[1] and d.class_bootstrap[0] < d.class_bootstrap[1]
    pairs = zip(run(slow_rate=0), run(slow_rate=0.4), strict=True)
    assert [(f.image, f.a, f.b) for f in d.flips] == [(p.image, p.category, q.category) for p, q in pairs if p.category != q.category]
    assert sum(n for _, n, _, _ in d.classes) == 200
    assert sum(n * (y - x) for _, n, x, y in d.classes) == pytest.approx(200 * d.gain)
    assert sum(y - x for _, _, x, y in d.pairs) == only_a - only_b


def test_images_only_one_run_has_are_left_out_and_counted(finished):
    [d] = compare.compare([finished("runs/a"), finished("runs/b", drop=50)]).differences
    assert (d.n, d.left_out, d.gain, d.mcnemar, d.flips) == (150, 50, 0, 1, ())


def test_a_sweep_has_a_row_per_job_and_a_mean_per_number_of_shots(finished, tmp_path: Path):
    for job, (shots, seed) in enumerate([(2, 0), (2, 1), (4, 0), (4, 1)]):
        finished(f"sweeps/abc/{job}", shots=shots, seed=seed, slow_rate=shots / 10, **{"n": 100 + seed})
    found = compare.compare([tmp_path / "sweeps/abc"])
    assert [r.run for r in found.rows] == [f"abc/{job}" for job in range(4)] and not found.differences
    assert [r.top1 for r in found.rows if r.best] == [max(r.top1 for r in found.rows)]
    assert [(c.shots, c.seeds) for c in found.cells] == [(2, 2), (4, 2)]
    top1 = [r.top1 for r in found.rows if r.shots == 2]
    assert found.cells[0].mean == pytest.approx(np.mean(top1))
    assert found.cells[0].interval == pytest.approx(stats.t.interval(0.95, 1, np.mean(top1), stats.sem(top1)))
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["cells"][0]["seeds"] == 2


def shown(found: compare.Comparison) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for part in compare.tables(found):
        console.print(part)
    return console.export_text()


def test_another_setting_is_no_other_seed(finished, tmp_path: Path):
    rates = (0.2, 0.3, 0.4)
    for job, rate in enumerate(rates):
        finished(f"sweeps/one/{job}", slow_rate=rate, settings={"trigger": {"target": f"slow_rate:{rate}"}})
    found = compare.compare([tmp_path / "sweeps/one"])
    assert len(found.rows) == 3 and found.cells == () and "over seeds" not in shown(found)
    for job, (rate, seed) in enumerate([(rate, seed) for rate in rates for seed in (0, 1)]):
        settings = {"trigger": {"target": f"slow_rate:{rate}"}, "fusion": {"image_weight": 0.3}}
        finished(f"sweeps/two/{job}", slow_rate=rate, seed=seed, n=100 + seed, settings=settings)
    found = compare.compare([tmp_path / "sweeps/two"])
    assert [(c.settings, c.seeds) for c in found.cells] == [(f"trigger.target=slow_rate:{rate}", 2) for rate in rates]
    assert "trigger.target=slow_rate:0.3" in shown(found)


def test_the_same_seed_twice_is_one_seed_and_has_no_interval(finished, tmp_path: Path):
    for job, (shots, seed) in enumerate([(2, 0), (2, 0), (4, 0), (4, 0), (4, 1)]):
        finished(f"sweeps/abc/{job}", shots=shots, seed=seed, n=100 + 10 * job)
    found = compare.compare([tmp_path / "sweeps/abc"])
    assert [(c.shots, c.seeds, c.interval is None) for c in found.cells] == [(2, 1, True), (4, 2, False)]
    top1 = [r.top1 for r in found.rows]
    assert found.cells[1].mean == pytest.approx(((top1[2] + top1[3]) / 2 + top1[4]) / 2)
    assert [c["interval"] is None for c in asdict(found)["cells"]] == [True, False]


def test_a_random_trigger_follows_the_seed(finished, tmp_path: Path):
    for seed in (0, 1):
        finished(f"sweeps/abc/{seed}", n=100 + seed, settings={"seed": seed, "trigger": {"seed": seed}})
    [cell] = compare.compare([tmp_path / "sweeps/abc"]).cells
    assert cell.seeds == 2 and cell.settings == ""


def test_what_is_shown_names_classes_images_and_the_best(finished):
    found = compare.compare([finished("runs/a", slow_rate=0), finished("runs/b", slow_rate=0.4)])
    console = Console(width=140, record=True, file=io.StringIO())
    for part in compare.tables(found):
        console.print(part)
    text = console.export_text()
    assert "runs/b against runs/a, 200 images" in text and "McNemar" in text and "Class " in text and " *" in text


def test_what_cannot_be_compared_is_refused(finished, run, classes, tmp_path: Path):
    a = finished("runs/a")
    with pytest.raises(ConfigError, match="given twice"):
        compare.compare([a, a])
    with pytest.raises(StoreError, match="no finished evaluation"):
        compare.compare([a, tmp_path])
    with pytest.raises(ConfigError, match="is one run; give the one to compare it with"):
        compare.compare([a])
    b = finished("runs/b")
    others = [replace(p, sha256="f" * 64) for p in run()]
    (b / "predictions.jsonl").write_text("".join(map(to_line, others)))
    with pytest.raises(DatasetError, match="no image in common"):
        compare.compare([a, b])
