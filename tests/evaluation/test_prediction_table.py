"""Answers for people and spreadsheets: `to_dict`, predictions.csv, names in predictions.jsonl, the summary of many images."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import fgvr
from fgvr import cli
from fgvr.evaluation import records
from fgvr.evaluation.console import prediction_tables
from fgvr.types import Abstention
from tests.data.test_folder import classes

FAKE = ("models=fake", "dataset=folder", "dataset.shots=2")


def test_to_dict_is_plain_and_names_classes(run) -> None:
    names = {str(c): f"Class {c}" for c in range(8)}
    fast, slow = (replace(next(p for p in run() if bool(p.slow) == thought), names=names) for thought in (False, True))
    for prediction in (fast, slow):
        told = json.loads(json.dumps(prediction.to_dict()))
        assert told == prediction.to_dict() and told["file"] == prediction.image and told["class"] == f"Class {prediction.category}"
        assert told["label"] == f"Class {prediction.label}" and told["correct"] == prediction.correct and not told["unsure"]
        probabilities = [choice["probability"] for choice in told["top"]]
        assert 1 < len(probabilities) <= 5 and probabilities == sorted(probabilities, reverse=True)
    assert slow.to_dict()["top"][0] == {"class": f"Class {slow.slow.category}", "probability": 0.8}


def test_what_nobody_looked_at_again_or_was_withheld_is_unsure(run) -> None:
    doubted = replace(next(p for p in run() if p.decision.escalate), slow=None, by="fast")
    withheld = replace(run()[0], abstention=Abstention(True, 0.1, 0.5))
    assert doubted.to_dict()["unsure"] and withheld.to_dict()["unsure"]
    assert not replace(doubted, abstention=Abstention(False, 0.9, 0.5)).to_dict()["unsure"]


def test_a_row_brings_its_names_and_rows_without_them_are_still_read(run) -> None:
    prediction = records.as_recorded(replace(run()[0], names={str(c): f"Class {c}" for c in range(8)}))
    row = json.loads(records.to_line(prediction))
    assert row["name"] == prediction.name and row["names"][prediction.category] == prediction.name
    again = records.from_row(row)
    assert again == prediction and again.to_dict() == prediction.to_dict()
    old = {key: value for key, value in row.items() if key not in ("name", "names")}
    assert records.from_row(old).name == prediction.category
    assert records.from_row(old, {prediction.category: "Kite"}).name == "Kite"


def test_the_table_has_a_line_per_image_with_five_candidates(run, tmp_path: Path) -> None:
    made = [replace(p, names={"0": 'A "b", c'}) for p in run(30)]
    with open(records.write_table(tmp_path, made), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [p.image for p in made]
    assert list(rows[0]) == list(records.COLUMNS) and list(rows[0])[-2:] == ["top5", "probability5"]
    assert any(row["top1"] == 'A "b", c' for row in rows) and all(float(row["probability1"]) >= float(row["probability2"]) for row in rows)


def shown(predictions) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for part in prediction_tables(predictions):
        console.print(part)
    return console.export_text()


def test_of_many_images_the_terminal_shows_a_summary(run) -> None:
    many = run(200)
    told = shown(many)
    assert "200 images" in told and "8 classes" in told and many[0].image not in told
    count = sum(p.name == "Class 3" for p in many)
    assert any("Class 3" in line and f" {count} " in line for line in told.splitlines())
    assert run(50)[0].image in shown(run(50))


def test_classify_says_where_every_answer_is(tmp_path: Path, capfd) -> None:
    root = classes(tmp_path / "kites", each=30)
    assert cli.main(["mode=classify", f"image={root}", f"dataset.root={root}", "trigger=never", *FAKE]) == 0
    out = capfd.readouterr().out.replace("\n", "")
    [table] = Path(os.environ["FGVR_HOME"]).rglob("predictions.csv")
    assert "60 images" in out and str(table) in out
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and {row["class"] for row in rows} <= {"Black Kite", "red kite"}
    lines = [json.loads(line) for line in table.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [row["class"] for row in rows]


def test_an_evaluation_and_its_replay_leave_the_table_too(tmp_path: Path) -> None:
    root = classes(tmp_path / "kites")
    report = fgvr.evaluate(fgvr.load_config("mode=evaluate", f"dataset.root={root}", *FAKE))
    first = (report.path / "predictions.csv").read_text()
    assert first.count("\n") == report.n + 1
    from fgvr import modes

    replayed = modes.perform(fgvr.load_config("mode=replay", f"predictions={report.path}", "models=fake"))
    assert (replayed.path / "predictions.csv").read_text() == first
