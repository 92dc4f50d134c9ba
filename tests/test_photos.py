"""Photographs without an MLLM: which models a folder gets, what no System 2 means, and what every part does without words."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import fgvr
from fgvr import cli, modes
from fgvr.errors import ConfigError
from fgvr.evaluation import report as reports
from fgvr.modes.comparing_baselines import OURS, chosen_baselines
from fgvr.session import Session

COLOURS = {"lemon": (230, 210, 40), "lime": (60, 160, 50), "plum": (80, 30, 90)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of speckled discs, each with three photographs to learn from and one to test."""
    root, random = tmp_path_factory.mktemp("fruit"), np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for name, colour in COLOURS.items():
        for i in range(4):
            part = root / ("test" if i == 3 else "train") / name
            part.mkdir(parents=True, exist_ok=True)
            disc = (rows - random.integers(26, 38)) ** 2 + (columns - random.integers(26, 38)) ** 2 < random.integers(14, 24) ** 2
            pixels = np.where(disc[..., None], colour, 235) + random.normal(0, 12, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(part / f"{i}.png")
    return root


def photos(folder: Path, *words: str) -> list[str]:
    return ["dataset=folder", f"dataset.root={folder}", "dataset.shots=3", *words]


# --- which models ------------------------------------------------------------------------------------------------------------


def test_photographs_get_the_image_encoder_and_no_mllm_birds_keep_their_own(folder: Path) -> None:
    for words in (photos(folder), ["dataset=cub200"], ["models=photos"]):
        cfg = fgvr.load_config(*words)
        assert (cfg.models.encoder.source, cfg.models.mllm.loader, cfg.slow.decoder) == ("efficientnet_lite0", "none", "none")
        assert (cfg.fusion.classifier, cfg.knowledge.views, cfg.trigger.target) == ("linear", 2, "slow_rate:0.3")
    birds = fgvr.load_config()
    assert (birds.models.encoder.source, birds.slow.decoder) == ("tiny", "score")
    assert (birds.fusion.classifier, birds.trigger.target) == ("prototypes", "slow_rate:0.6")
    assert fgvr.load_config("experiment=sare_cub200").models.encoder.source == "ViT-B-32/openai"


def test_all_photographs_help_where_all_are_asked_for(folder: Path) -> None:
    words = ("dataset=folder", f"dataset.root={folder / 'train'}", "dataset.shots=all")
    everything = Session(fgvr.load_config(*words)).dataset.split
    assert len(everything.support) == len(list((folder / "train").rglob("*.png"))) and not everything.test
    kept = Session(fgvr.load_config(*words, "dataset.test_per_class=1")).dataset.split
    assert (len(kept.test), len(kept.support)) == (len(COLOURS), len(everything.support) - len(COLOURS))
    for word in ("null", "0", "every"):
        with pytest.raises(ConfigError, match=rf"dataset\.shots={word}.* or all"):
            fgvr.load_config("dataset=folder", f"dataset.root={folder}", f"dataset.shots={word}")
    with pytest.raises(ConfigError, match="no end of rendered birds"):
        Session(fgvr.load_config("dataset.shots=all")).dataset  # noqa: B018


def test_the_page_of_a_classified_photograph_speaks_of_images_alone(folder: Path, tmp_path: Path) -> None:
    image = next((folder / "test").rglob("*.png"))
    assert cli.main(["mode=classify", f"image={image}", "dataset=folder", f"dataset.root={folder}", f"paths.home={tmp_path}"]) == 0
    page = next(tmp_path.rglob("report.html")).read_text()
    assert "System 1's shortlist" in page.replace("&#39;", "'") and "image and text" not in page and ">text<" not in page


def test_birds_are_never_drawn_among_photographs(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for root in (folder, folder / "train"):
        with pytest.raises(ConfigError, match=rf"holds photographs .*write dataset=folder dataset.root={root} "):
            Session(fgvr.load_config("mode=evaluate", f"dataset.root={root}")).dataset  # noqa: B018
    assert sorted(folder.rglob("*")) == before


def test_an_mllm_beside_the_image_encoder_is_asked(folder: Path) -> None:
    cfg = fgvr.load_config(*photos(folder, "models/mllm=fake"))
    assert (cfg.models.encoder.source, cfg.slow.decoder) == ("efficientnet_lite0", "score")
    assert fgvr.load_config(*photos(folder, "models/mllm=fake", "slow=none")).slow.decoder == "none"


def test_tiny_models_on_photographs_are_refused_on_the_terminal(folder: Path, python: Callable[..., CompletedProcess[str]]) -> None:
    said = python("discovering.py", *photos(folder, "models=tiny"))
    assert said.returncode == 2 and "knows rendered birds only" in said.stderr and "models=photos" in said.stderr
    assert fgvr.load_config(*photos(folder, "models=tiny", "models.force=true")).models.encoder.source == "tiny"


@pytest.mark.parametrize(("words", "said"), [
    (["slow=score"], "slow=none"),
    (["mode=slowonly"], "mode=fastonly"),
    (["mode=build_experience_base"], "models/mllm=NAME"),
    (["fusion=joint"], "models/joint"),
])  # fmt: skip
def test_what_needs_a_model_that_is_not_there_says_what_to_write(folder: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        modes.perform(fgvr.load_config(*photos(folder, *words)))


# --- no System 2 -------------------------------------------------------------------------------------------------------------


def test_doubtful_photographs_keep_the_fast_answer_and_are_unsure(folder: Path) -> None:
    cfg = fgvr.load_config(*photos(folder, "trigger.target=slow_rate:0.5"))
    report = fgvr.evaluate(cfg)
    assert report.n == 3 and report.top1 == 1.0 and not (report.path / "review.html").exists(), "nobody is asked to look at it"
    assert ("Fixed by System 2" in (report.path / "report.html").read_text()) != report.unsure, "nor has System 2 fixed anything"
    assert report.asked["mllm_calls"] == 0 and report.unsure == (report.slow_rate > 0)
    shown = Console(width=120, record=True, file=io.StringIO())
    shown.print(reports.terminal(report))
    text, page, body = shown.export_text(), (report.path / "report.html").read_text(), json.loads((report.path / "report.json").read_text())
    assert ("unsure, and nobody has looked again" in text) == report.unsure
    assert "trigger expects to doubt" in text and ("escalated to System 2" in text) != report.unsure, "there is no System 2"
    assert not any(word in text for word in ("mllm calls", "prompt tokens", "Top-5")), "no MLLM took part, and there are three classes"
    assert not any(word in page for word in ("Unreadable answers", "Top-5", "top-5", "<td>System 2<"))
    assert ("accuracy if a person looked at the unsure, at most" in text) == report.unsure
    sure = sum(not p["decision"]["escalate"] for p in map(json.loads, (report.path / "predictions.jsonl").read_text().splitlines()))
    assert body["sure"] == ({"images": sure, "top1": 1.0, "interval": [1.0, 1.0]} if report.unsure and sure else None)
    assert (f"accuracy where it is sure ({sure:,} images)" in text) == (body["sure"] is not None)
    assert ("Right where it is sure" in page and f"of {sure:,} images; 95% interval" in page) == (body["sure"] is not None)
    assert "upper bound: the person is always right" in page and "What a review could bring" in page and "share of images reviewed" in page
    assert "Accuracy against the escalated share" not in page and "What System 2 changed" not in page
    assert [(one["share"], one["ours"], one["oracle"]) for one in body["reviewed"]] == [(s, 1.0, 1.0) for s in (0.05, 0.1, 0.2, 0.3, 0.5)]
    rows = [json.loads(line) for line in (report.path / "predictions.jsonl").read_text().splitlines()]
    assert {row["by"] for row in rows} == {"fast"} and all(row["slow"] is None for row in rows)
    recognizer = fgvr.build_recognizer(cfg)
    answers = recognizer.batch([folder / "test" / name / "3.png" for name in COLOURS])
    assert [p.name for p in answers] == list(COLOURS)
    assert [p.unsure for p in answers] == [p.decision.escalate for p in answers]
    assert all(("unsure" in str(p)) == p.unsure for p in answers)
    everything = fgvr.build_recognizer(fgvr.load_config(*photos(folder, "trigger=always")))(folder / "test" / "plum" / "3.png")
    assert everything.unsure and everything.by == "fast" and everything.slow is None and "unsure" in everything.answer


def test_a_base_without_words_ranks_by_images_alone_and_says_so(folder: Path) -> None:
    recognizer = fgvr.fit(folder, "dataset.shots=3")
    prediction = recognizer(folder / "test" / "lime" / "3.png")
    assert prediction.name == "lime"
    assert all(c.text_score is None and c.text_rank is None and c.image_rank is not None for c in prediction.fast.candidates)
    assert sum(c.probability for c in prediction.fast.candidates) == pytest.approx(1)
    assert "agreement" not in prediction.decision.terms
    assert any("reads no text" in note for note in recognizer.notes)


def test_an_image_encoder_beside_an_mllm_has_descriptions_for_system_2_only(folder: Path) -> None:
    report = fgvr.evaluate(fgvr.load_config(*photos(folder, "models/mllm=fake", "trigger=always")))
    rows = [json.loads(line) for line in (report.path / "predictions.jsonl").read_text().splitlines()]
    assert {row["by"] for row in rows} == {"slow"}
    assert {c["text_score"] for row in rows for c in row["fast"]["candidates"]} == {None}


# --- what needed words does without, and says so ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    (["evaluation.protocols=[exact,sacc]"], "reads no text"),
    (["models/mllm=fake", "slow=analyse"], "reads no text"),
    (["online=prototypes"], "fusion=prototypes"),
])  # fmt: skip
def test_what_compares_words_is_refused_before_anything_is_computed(folder: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fgvr.evaluate(fgvr.load_config(*photos(folder, *words)))


def test_baselines_leave_out_what_is_not_there(folder: Path) -> None:
    session = Session(fgvr.load_config("mode=baselines", *photos(folder)))
    assert chosen_baselines(session) == ["image_prototypes", "linear_discriminant", "knn", "cache", "linear_probe", OURS]
    with pytest.raises(ConfigError, match="zero_shot .*reads no text"):
        chosen_baselines(Session(fgvr.load_config("mode=baselines", *photos(folder, "baselines.which=zero_shot"))))
    found = modes.perform(fgvr.load_config("mode=baselines", *photos(folder, "baselines.which=[image_prototypes,cache]")))
    assert {report.n for report in found.reports.values()} == {3}


def test_gates_decide_by_what_images_alone_say(folder: Path) -> None:
    report = fgvr.evaluate(fgvr.load_config(*photos(folder, "trigger=gates")))
    assert report.n == 3


def test_the_doctor_says_beforehand_what_can_be_promised(folder: Path) -> None:
    said = {f.topic: f for f in modes.perform(fgvr.load_config("mode=doctor", *photos(folder))).findings}
    assert said["promise"].well and "12 calibration images can certify risk:E@0.1" in said["promise"].detail
    assert "slow" not in said, "no MLLM is asked, so none can be asked wrongly"


@pytest.mark.parametrize(("words", "said"), [
    ([], "slow_rate:0.3 promises nothing about errors; trigger.target=risk:0.1@0.1 does, and needs 22 calibration images"),
    (["trigger.target=risk:0.05@0.1"], "needs 45 calibration images .* sets none apart, so there is an estimate and no promise"),
    (["trigger.target=risk:0.1@0.1", "dataset.calibration=4"], "needs 22 calibration images .* sets 4 of each class apart"),
    (["trigger.abstain=risk:0.1@0.05"], "risk:0.1@0.05 needs 29 calibration images"),
])  # fmt: skip
def test_a_plan_says_what_a_promise_needs(folder: Path, words: list[str], said: str) -> None:
    plan = modes.perform(fgvr.load_config("mode=plan", *photos(folder, *words)))
    assert any(re.search(said, fact) for fact in plan.facts), plan.facts
    assert not any("calibration images" in fact for fact in modes.perform(fgvr.load_config("mode=plan", "trigger=sare")).facts)


def test_a_base_made_with_another_encoder_is_refused_with_both_named(folder: Path, tmp_path: Path) -> None:
    place = f"knowledge.path={tmp_path / 'base'}"
    fgvr.build_knowledge_base(fgvr.load_config("mode=build_knowledge_base", *photos(folder, place)))
    with pytest.raises(fgvr.KnowledgeError, match="efficientnet_lite0.*fake"):
        fgvr.build_recognizer(fgvr.load_config(*photos(folder, place, "models/encoder=fake")))


def test_one_photograph_of_a_class_is_used_and_the_trigger_says_what_it_lacks(folder: Path) -> None:
    recognizer = fgvr.fit(folder, "dataset.shots=1", "trigger=never")
    assert recognizer(folder / "test" / "plum" / "3.png").name == "plum"
    with pytest.raises(ConfigError, match=r"dataset\.shots=2 or more"):
        fgvr.fit(folder, "dataset.shots=1")


def test_the_linear_classifier_changes_a_record_so_a_replay_refuses_to_change_it(folder: Path) -> None:
    from fgvr.modes import perform

    report = fgvr.evaluate(fgvr.load_config(*photos(folder)))
    again = perform(fgvr.load_config("mode=replay", f"predictions={report.path}", "fusion=linear", "trigger.target=slow_rate:0"))
    assert again.top1 == report.top1 and again.slow_rate == 0
    with pytest.raises(ConfigError, match="run again"):
        perform(fgvr.load_config("mode=replay", f"predictions={report.path}", "fusion=prototypes", "fusion.shrinkage=0.5"))
