from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fgvr.errors import StoreError
from fgvr.evaluation import html, report, review_page, uncertainty
from fgvr.evaluation.memory_history import MemoryHistory, ModelTotals
from fgvr.types import Report

NOTE = "These models know only birds: the figures say nothing about other pictures."


@pytest.fixture
def made(run, classes, tmp_path: Path) -> report.RunReport:
    predictions = run()
    colours = np.random.default_rng(0).integers(0, 255, (len(predictions), 3), np.uint8)
    pictures = {p.image: Image.new("RGB", (150, 120), tuple(c)) for p, c in zip(predictions, colours.tolist(), strict=True)}
    return report.make_report(
        predictions,
        classes=classes,
        dataset="birds",
        trigger="calibrated",
        notes=[NOTE, "Second."],
        model_loads={"mllm": 1, "encoder": 1, "joint": 0},
        peak_device_bytes=3 << 20,
        path=tmp_path,
        skipped=2,
        config={"mode": "evaluate", "trigger": {"target": "slow_rate:0.45"}, "home": tmp_path},
        pictures=pictures,
    )


class Page(HTMLParser):
    """Tags in order, and what any of them would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    # `<line/>` is reported as a start and an end, which is what it is.
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_numbers_are_those_of_a_loop_over_the_predictions(made):
    p = made.predictions
    assert made.n == 200
    assert made.top1 == made.protocols["exact"] == pytest.approx(np.mean([x.correct for x in p]))
    assert made.top1_interval[0] < made.top1 < made.top1_interval[1]
    assert made.slow_rate == pytest.approx(np.mean([x.by == "slow" for x in p]))
    assert made.cost["mllm_calls"] == sum(x.by == "slow" for x in p)
    assert made.cost["encoder_forwards"] == 200
    assert made.cost["seconds"] == pytest.approx(2.0)


def test_every_score_that_is_a_mean_has_both_intervals(run, classes, tmp_path: Path):
    measure = ("exact", "top5", "macro", "cacc", "text_inclusion")
    predictions = run()
    made = report.make_report(predictions, classes=classes, dataset="d", trigger="t", model_loads={}, path=tmp_path, measure=measure)
    report.write(made, tmp_path)
    body = json.loads((tmp_path / "report.json").read_text())
    assert body["intervals"].keys() == set(measure) - {"cacc"}, "a matching over all images is no mean over them"
    assert body["intervals"]["exact"]["image_bootstrap"] == body["top1_interval"] == list(uncertainty.image_bootstrap(made.seen.right))
    assert body["intervals"]["exact"]["class_bootstrap"] == list(uncertainty.class_bootstrap(made.seen.right, made.seen.labels))
    for name, both in body["intervals"].items():
        assert both.keys() == {"image_bootstrap", "class_bootstrap"}
        assert all(low < body["protocols"][name] < high or low == high for low, high in both.values())
    console = Console(width=140, record=True)
    console.print(report.terminal(made))
    shown, page = console.export_text(), (tmp_path / "report.html").read_text()
    for name in ("top5", "macro"):
        bounds = body["intervals"][name]["image_bootstrap"]
        assert "[{:.3f}, {:.3f}]".format(*bounds) in shown and "{:.1%} to {:.1%}".format(*bounds) in page


def test_what_was_measured_of_the_work_is_told(run, classes, tmp_path: Path):
    totals = (ModelTotals("mllm-1", "mllm", loading_seconds=1.25, leased_seconds=7.5), ModelTotals("mllm-2", "mllm", leased_seconds=0.5))
    history = MemoryHistory(((0.0, 0, 1),), (), 9.0, totals, Counter())
    known = {"memory": history, "peak_host_bytes": 700 << 20, "decode_wait": 0.25, "cache_hits": 1234}
    made = report.make_report(run(), classes=classes, dataset="d", trigger="t", model_loads={}, path=tmp_path, **known)
    report.write(made, tmp_path)
    body, page = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.html").read_text()
    assert body["stage_seconds"] == {"mllm": {"loading": 1.25, "in_use": 8.0}} and body["peak_host_bytes"] == 700 << 20
    assert (body["cost"]["decode_wait"], body["cost"]["cache_hits"]) == (0.25, 1234)
    assert "700 MiB" in page and "1,234 embeddings and replies" in page


def test_what_system_2_left_as_it_was_is_counted(made, tmp_path: Path):
    report.write(made, tmp_path)
    asked = [p for p in made.predictions if p.decision.escalate]
    same = sum((p.fast.top.category == p.label) == p.correct for p in asked)
    assert json.loads((tmp_path / "report.json").read_text())["unchanged"] == made.unchanged == report.load(tmp_path).unchanged == same > 0
    page = (tmp_path / "report.html").read_text()
    assert f"{same:,}<small>asked, and as right or wrong as before" in page
    assert "upper bound" not in page and json.loads((tmp_path / "report.json").read_text())["reviewed"] is None, "somebody was asked"


def test_a_written_report_is_read_back_equal(made, tmp_path: Path):
    report.write(made, tmp_path)
    loaded = report.load(tmp_path)
    assert type(loaded) is Report
    assert all(getattr(loaded, f.name) == getattr(made, f.name) for f in fields(Report))


def test_report_json_has_the_keys_others_rely_on(made, tmp_path: Path):
    report.write(made, tmp_path)
    body = json.loads((tmp_path / "report.json").read_text())
    assert set("n top1 top1_interval macro slow_rate fixed broken protocols cost peak_device_bytes model_loads".split()) <= set(body)
    assert set("classes dataset trigger notes skipped fgvr config".split()) <= set(body)
    assert {"encoder_forwards", "mllm_calls", "prompt_tokens", "new_tokens", "seconds"} == set(body["cost"])
    assert body["notes"][0] == NOTE and len(body["top1_interval"]) == 2
    assert body["protocol_versions"].keys() == body["protocols"].keys()


def test_writing_leaves_only_the_two_files_and_the_same_bytes_each_time(made, tmp_path: Path):
    report.write(made, tmp_path / "run")
    first = {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir()}
    report.write(made, tmp_path / "run")
    assert first.keys() == {"report.json", "report.html"}
    assert first == {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir()}


def test_a_report_that_is_not_there_says_how_to_get_it(tmp_path: Path):
    with pytest.raises(StoreError, match="has not finished"):
        report.load(tmp_path)
    (tmp_path / "report.json").write_text('{"n": 3}')
    with pytest.raises(StoreError, match="not a report") as told:
        report.load(tmp_path)
    assert "top1: Field required" in str(told.value) and "more" in str(told.value)
    assert "\n" not in str(told.value) and "http" not in str(told.value)
    (tmp_path / "review.json").write_text('{"run": 3, "images": {"a.jpg": null}}')
    with pytest.raises(StoreError, match=r"images\.a\.jpg: .*run\.fresh=true") as told:
        review_page.read(tmp_path)
    assert "\n" not in str(told.value) and "http" not in str(told.value)


def test_the_page_is_well_formed_and_fetches_nothing(made, tmp_path: Path):
    report.write(made, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert page.open == []
    assert page.addresses and all(a.startswith("data:image/jpeg;base64,") for a in page.addresses)
    assert page.tags.count("svg") == 4
    assert page.tags.count("script") == 1 and "link" not in page.tags
    assert page.tags.count("caption") == page.tags.count("table")


def test_the_note_is_the_first_thing_on_the_page_and_on_the_terminal(made, tmp_path: Path):
    report.write(made, tmp_path)
    body = (tmp_path / "report.html").read_text().split("<main>")[1]
    assert body.startswith(f'<p class="note" role="note">{NOTE}</p>')
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(report.terminal(made))
    lines = console.export_text().splitlines()
    assert lines[0] == NOTE
    assert any("exact v1" in line and f"{made.top1:.3f}" in line for line in lines)


def test_what_a_model_or_a_file_says_is_escaped(made, tmp_path: Path):
    hostile = replace(made, notes=("<script>alert(1)</script>",), classes={c: f"<b>{c}" for c in made.classes})
    report.write(hostile, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<script") == 1 and "<script>alert" not in text and "<b>0" not in text and "&lt;and not another&gt;" in text


@pytest.mark.parametrize("slow_rate", [0.0, 0.4, 1.0])
def test_the_page_can_be_drawn_for_fast_only_mixed_and_slow_only_runs(run, classes, tmp_path: Path, slow_rate: float):
    made = report.make_report(run(slow_rate=slow_rate), classes=classes, dataset="birds", trigger="x", model_loads={}, path=tmp_path)
    report.write(made, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert ("oracle, knows both outcomes" in text) == (slow_rate == 1.0)
    assert "nan" not in text.split("</style>")[1].split("<section><details>")[0]


def test_a_run_with_one_image_all_right_is_drawn_too(run, classes, tmp_path: Path):
    only = next(p for p in run() if p.correct)
    made = report.make_report([only], classes=classes, dataset="d", trigger="never", model_loads={}, path=tmp_path)
    report.write(made, tmp_path)
    assert report.load(tmp_path).top1 == 1.0
    assert "No image was taken for another class" in (tmp_path / "report.html").read_text()


def test_a_thumbnail_is_small_whatever_comes_in(tmp_path: Path):
    picture = tmp_path / "big.png"
    Image.new("RGBA", (2000, 1000), "red").save(picture)
    for source in (picture, str(picture), Image.open(picture), np.zeros((400, 300, 3), np.uint8)):
        url = html.thumbnail(source)
        assert url and len(url) < 4000
    assert html.thumbnail(tmp_path / "absent.png") is None
    assert html.thumbnail(None) is None


def test_text_protocols_come_with_the_share_of_wrong_answers_they_accept(run, classes, tmp_path):
    measure = ("exact", "cacc", "sare_fuzzy@0.3")
    made = report.make_report(
        run(60), classes=classes, dataset="made up", trigger="t", model_loads={}, path=tmp_path, measure=measure
    )  # fmt: skip
    assert tuple(made.protocols) == measure
    assert "sare_fuzzy@0.3 v1 calls 100.0% of all wrong answers right (ordered pairs of the 8 class names)" in made.notes
    assert report.to_json(made)["protocol_versions"]["sare_fuzzy@0.3"] == 1


def test_a_page_of_many_images_and_classes_stays_small(run, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 112, 112, 3), np.uint8)
    predictions = run(10_000, classes=200)
    made = report.make_report(
        predictions, classes={str(c): f"Class {c}" for c in range(200)}, dataset="d", trigger="t", model_loads={}, path=tmp_path,
        pictures={p.image: noise[i % 40] for i, p in enumerate(predictions)}, known={str(c): list(noise[:8]) for c in range(200)},
    )  # fmt: skip
    report.write(made, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 8e6


def test_confidence_is_held_against_accuracy():
    from fgvr.evaluation import metrics

    confidence = np.repeat([0.2, 0.6, 1.0], 10)
    right = np.concatenate([np.arange(10) < 2, np.arange(10) < 3, np.ones(10, bool)])
    found = metrics.reliability(confidence, right, bins=3)
    assert found.accuracy.tolist() == [0.2, 0.3, 1.0] and found.error == pytest.approx(0.1)


def test_what_system_2_changed_is_shown_class_by_class(made, tmp_path: Path):
    report.write(made, tmp_path)
    fixed = (tmp_path / "report.html").read_text().split("<h3>Fixed")[1].split("<h3>")[0]
    labels = [card.split("</dd>")[0].split("<dd>")[1] for card in fixed.split("<li>")[1:]]
    assert len(set(labels[:8])) == len(
        {p.label for p in made.predictions if p.by == "slow" and p.correct and p.fast.top.category != p.label}
    )


def test_the_report_says_with_what_it_was_made(made, tmp_path: Path):
    from fgvr.evaluation.provenance import provenance

    about = provenance()
    assert about["torch"][0].isdigit() and about["finished"].endswith("UTC")
    report.write(replace(made, provenance=about), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["provenance"] == about
    assert about["system"] in (tmp_path / "report.html").read_text()
