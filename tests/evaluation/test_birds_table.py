from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fgvr
from fgvr.data import birds
from fgvr.evaluation import report
from fgvr.evaluation.records import to_line

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The script as a module, with a docs folder of its own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("birds_table")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.fixture
def of_a_world(table):
    """What one world shows, as a module."""
    return importlib.import_module("birds_measure")


@pytest.fixture
def world(run):
    """The four runs of a world in which all see the same images."""
    always = run(400, slow_rate=1.0)
    calibrated = [
        p
        if p.decision.score < 0.72
        else replace(p, category=p.fast.top.category, by="fast", decision=replace(p.decision, escalate=False), slow=None)
        for p in always
    ]
    fast = [replace(p, category=p.fast.top.category, by="fast", decision=replace(p.decision, escalate=False), slow=None) for p in always]
    return {"fast": fast, "slow": always, "calibrated": calibrated, "reason": fast, "alone": always}


def test_the_quantities_of_a_world_are_what_its_runs_show(of_a_world, world):
    found = of_a_world.fast_quantities(world["fast"]) | of_a_world.slow_quantities(world)
    by_score = sorted(world["calibrated"], key=lambda p: p.decision.score)
    always = {p.sha256: p for p in world["slow"]}
    matched = np.mean([(always[p.sha256] if i < 240 else p).category == p.label for i, p in enumerate(fast_of(world, by_score))])
    assert found["fast"] == pytest.approx(np.mean([p.correct for p in world["fast"]]))
    assert found["slow"] == found["alone"] == pytest.approx(np.mean([p.correct for p in world["slow"]]))
    assert found["calibrated"] == pytest.approx(np.mean([p.correct for p in world["calibrated"]]))
    assert found["calibrated_rate"] == pytest.approx(np.mean([p.by == "slow" for p in world["calibrated"]]))
    assert found["matched"] == pytest.approx(matched)
    assert found["recovered"] == pytest.approx((matched - found["fast"]) / (found["slow"] - found["fast"]))
    assert found["matched_loss"] == pytest.approx(matched - found["slow"])
    assert found["reason"] == found["fast"]
    assert 0 < found["area"] < 1


def fast_of(world, order):
    fast = {p.sha256: p for p in world["fast"]}
    return [fast[p.sha256] for p in order]


def test_runs_that_saw_other_images_are_not_compared(of_a_world, world):
    with pytest.raises(ValueError, match="same images"):
        of_a_world.slow_quantities({**world, "slow": world["slow"][1:]})


def test_true_descriptions_have_all_attributes_right_and_a_neighbour_misses_what_differs(of_a_world):
    species = birds.make_world(9000).species
    truth = {s.name: s.describe() for s in species}
    assert of_a_world.attributes_right(truth, truth)["attributes"] == 1.0
    a, b = species[0], species[1]
    found = of_a_world.attributes_right({a.name: b.describe()}, {a.name: a.describe()})
    assert found["attributes"] == pytest.approx(1 - birds.distance(a.attributes, b.attributes) / 10)


def test_an_attribute_left_out_or_stated_twice_is_wrong(of_a_world):
    assert of_a_world.stated("A bird with red crown and blue crown, no eye ring.")["crown"] is None
    assert of_a_world.stated("A bird with no eye ring.")["eye ring"] == "no"
    assert of_a_world.stated("A Bird With One wing bar.")["wing bars"] == "one"
    assert of_a_world.stated("")["tail"] is None
    assert of_a_world.attributes_right({}, {"x": birds.make_world(9000).species[0].describe()})["attributes"] == 0.0


def test_a_gate_is_about_the_mean_and_clear_about_the_interval(table):
    gates = {"fast": table.Gate(0.60, 0.75), "calibrated_rate": table.Gate(0.75, at_most=True)}
    rows = {
        name: {r.key: r for r in table.summarise({i: {"fast": f, "calibrated_rate": r} for i, (f, r) in enumerate(figures)}, gates)}
        for name, figures in {
            "clear": [(0.70, 0.60), (0.71, 0.61), (0.72, 0.62)],
            "met": [(0.50, 0.50), (0.80, 0.90)],
            "MISSED": [(0.59, 0.76), (0.60, 0.77)],
            "clear, goal": [(0.80, 0.1), (0.81, 0.1)],
        }.items()
    }
    assert {name: row["fast"].verdict for name, row in rows.items()} == {name: name for name in rows}
    assert [rows[name]["calibrated_rate"].verdict for name in ("clear", "met", "MISSED")] == ["clear", "met", "MISSED"]
    assert [row["fast"].missed for row in rows.values()] == [False, False, True, False]


def test_a_gate_on_something_not_measured_or_undefined_is_missed(table):
    (row,) = table.summarise({9000: {}}, {"auroc": table.Gate(0.78)})
    assert row.missed and row.verdict == "MISSED"
    (row,) = table.summarise({9000: {"auroc": math.nan}}, {"auroc": table.Gate(0.78)})
    assert row.missed


@pytest.mark.parametrize("worlds", ["9070", "9060-9071", "9099"])
def test_worlds_9070_to_9099_are_refused(table, worlds: str, capsys):
    with pytest.raises(SystemExit) as stop:
        table.parse(["--worlds", worlds])
    assert stop.value.code == 2
    assert "never run" in capsys.readouterr().err


def test_worlds_default_to_the_final_ones_with_system_2_on_five(table):
    assert list(table.parse([]).worlds) == list(range(9050, 9070))
    assert list(table.parse([]).slow) == [9050, 9051, 9052, 9053, 9054]
    assert list(table.parse(["--full"]).worlds) == list(range(9050, 9070))
    assert table.parse(["--full"]).slow is None
    assert list(table.parse(["--worlds", "9000-9002", "paths.home=/x"]).worlds) == [9000, 9001, 9002]
    assert table.parse(["--worlds", "9000", "paths.home=/x"]).overrides == ["paths.home=/x"]


def test_a_line_of_the_log_stands_under_its_day_and_new_days_stand_first(table):
    once = table.logged("# Log\n\nNewest first.\n\n## 2026-01-01\n- old\n", "2026-01-02", "- new")
    assert once == "# Log\n\nNewest first.\n\n## 2026-01-02\n- new\n\n## 2026-01-01\n- old\n"
    assert table.logged(once, "2026-01-02", "- newer").count("## 2026-01-02\n- newer\n- new\n") == 1
    assert table.logged("# Log\n", "2026-01-02", "- new") == "# Log\n\n## 2026-01-02\n- new\n"


@pytest.fixture
def fake_fgvr(table, of_a_world, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intercept):
    """`fgvr.load_config`, `evaluate` and `build_knowledge_base` that recognise nothing but answer as the real ones do."""
    asked: list[tuple[str, ...]] = []

    def load_config(*overrides: str):
        asked.append(overrides)
        seed = next(int(o.split("=")[1]) for o in overrides if o.startswith("dataset.seed="))
        runs = of_a_world.RUNS.items()
        name = max((name for name, words in runs if set(words) <= set(overrides)), key=lambda n: len(of_a_world.RUNS[n]), default="none")
        return SimpleNamespace(dataset=SimpleNamespace(seed=seed, genera=[4, 6], difficulty=1.0), name=name, words=overrides)

    def evaluate(cfg):
        folder = tmp_path / "runs" / f"{cfg.dataset.seed}-{cfg.name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.jsonl").write_text("".join(map(to_line, world[cfg.name])))
        return report.make_report(world[cfg.name], classes={}, dataset="birds", trigger=cfg.name, model_loads={}, path=folder)

    def build_knowledge_base(cfg):
        species = birds.make_world(cfg.dataset.seed, cfg.dataset.genera).species
        return SimpleNamespace(classes=[SimpleNamespace(name=s.name, description=SimpleNamespace(text=s.describe())) for s in species])

    def build_recognizer(cfg, base=None):
        broken = "dataset.split_seed=3" in cfg.words  # one draw in four answers everything fast
        decided = [replace(p.decision, escalate=not broken) for p in world["calibrated"]]
        return SimpleNamespace(fast=lambda batch: [p.fast for p in batch], decide=lambda fast: decided)

    test = of_a_world.TestImages((tuple(world["calibrated"]),), tuple(str(p.label) for p in world["calibrated"]))
    intercept(of_a_world, "Session", lambda whole, cfg: SimpleNamespace(dataset=SimpleNamespace(split=SimpleNamespace(test=()))))
    intercept(of_a_world.TestImages, "of", lambda whole, samples: test)
    monkeypatch.setattr(of_a_world.promise, "__defaults__", (4,))
    for function in (load_config, evaluate, build_knowledge_base, build_recognizer):
        monkeypatch.setitem(vars(fgvr), function.__name__, function)
    return asked


def test_the_command_prints_writes_and_ends_by_its_gates(table, fake_fgvr, tmp_path: Path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "LOG.md").write_text("# Log\n")
    card = tmp_path / "fgvr" / "models_tiny" / "encoder" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("# Tiny encoder\n")
    file = tmp_path / "figures.json"
    code = table.main(["--worlds", "9000-9001", "--json", str(file), "--write-docs", "run.fresh=true"])
    body = json.loads(file.read_text())
    rows = {row["quantity"]: row for row in body["rows"]}
    assert code == int(any(row["verdict"] == "MISSED" for row in body["rows"]))
    assert rows["attributes"]["mean"] == 1.0 and set(rows) == set(table.QUANTITIES)
    assert rows["promise_broken"]["mean"] == rows["promise_fast"]["mean"] == 0.25
    assert 0.5 < rows["auroc"]["mean"] < 1
    assert set(body["worlds"]) == {"9000", "9001"} and body["worlds"]["9000"]["attribute: beak"] == 1.0
    assert "fast only, top-1" in capsys.readouterr().out
    assert "| fast only, top-1 |" in (tmp_path / "docs" / "birds-table.md").read_text()
    assert f"| fast only, top-1 | {rows['fast']['mean']:.3f} |" in card.read_text() and card.read_text().startswith("# Tiny encoder")
    assert (tmp_path / "docs" / "LOG.md").read_text() == "# Log\n"  # no final world was touched
    assert all("run.fresh=true" in overrides for overrides in fake_fgvr)


def test_a_card_carries_the_latest_figures_once(table):
    rows = table.summarise({9000: {"fast": 0.5}}, {})
    once = table.carded("# Card\n\nRecipe.\n", rows, "World 9000.")
    twice = table.carded(once + "\nEnd.\n", table.summarise({9000: {"fast": 0.75}}, {}), "World 9000.")
    assert once.count("| fast only, top-1 | 0.500 |") == 1
    assert twice.count("fast only") == 1 and "0.750" in twice and twice.startswith("# Card\n\nRecipe.\n") and twice.endswith("End.\n")


def test_a_missed_gate_ends_with_one(table, fake_fgvr, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(table.GATES, "must", {"fast": table.Gate(0.01)})
    assert table.main(["--worlds", "9000", "--skip", "alone"]) == 0
    monkeypatch.setitem(table.GATES, "must", {"fast": table.Gate(1.01)})
    assert table.main(["--worlds", "9000", "--skip", "alone"]) == 1


def test_every_use_of_a_final_world_is_logged_an_interrupted_one_too(table, fake_fgvr, tmp_path: Path, intercept):
    log = tmp_path / "docs" / "LOG.md"
    table.main(["--worlds", "9050"])
    assert log.read_text().count("final worlds 9050-9050") == 1
    intercept(table, "measure", lambda measure, seed, *a, **k: measure(seed, *a, **k) if seed == 9050 else interrupt())
    with pytest.raises(KeyboardInterrupt):
        table.main(["--worlds", "9050-9054"])
    assert "final worlds 9050-9054" in log.read_text() and "(ended after 1 worlds)" in log.read_text()


def interrupt():
    raise KeyboardInterrupt
