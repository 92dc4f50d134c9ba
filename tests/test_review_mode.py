"""slow=person and mode=review: what a person has to look at, what the answers are worth, and what is learned from them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import fgvr
from fgvr import modes
from fgvr.cli import main
from fgvr.evaluation import report as reports
from fgvr.knowledge import base as knowledge_base
from fgvr.modes import runs
from fgvr.modes.review import Reviewed
from fgvr.runtime.pool import close_shared
from fgvr.session import Session

WORLD = ("dataset.genera=[4,4]", "dataset.test_per_class=5", "dataset.calibration=2")
WORDS = ("models=fake", "slow=person", *WORLD, "trigger.target=slow_rate:0.5")
Python = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path) -> fgvr.Report:
    """A run of which about half the images wait for a person."""
    close_shared()
    return fgvr.evaluate(fgvr.load_config("mode=evaluate", *WORDS, f"paths.home={home}"))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / runs.PREDICTIONS).read_text().splitlines()]


def page(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "review.json").read_text())


def answered(folder: Path, file: Path, answers: dict[str, str]) -> Path:
    """answers.csv of a run's page. Args: answers: by image, a class id, or "" for none of these."""
    body = page(folder)
    with open(file, "w", encoding="utf-8-sig", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("run", "image", "class_id", "class_name"))
        writer.writerows((body["run"], image, id, body["classes"].get(id, "none of these")) for image, id in answers.items())
    return file


def truth(folder: Path) -> dict[str, str]:
    """What a person who knows everything answers, the most doubtful image first."""
    labels = {row["image"]: row["label"] for row in rows(folder)}
    return {image: labels[image] for image in page(folder)["images"]}


def review(home: Path, file: Path, *words: str) -> Reviewed:
    return modes.perform(fgvr.load_config("mode=review", f"answers={file}", f"paths.home={home}", *words))


def test_what_the_trigger_escalates_waits_for_a_person_and_no_mllm_is_asked(run: fgvr.Report) -> None:
    found = rows(run.path)
    escalated = [row for row in found if row["decision"]["escalate"]]
    assert 0 < len(escalated) < len(found) and all(row["by"] == "fast" and row["slow"] is None for row in found)
    ordered = sorted(escalated, key=lambda row: (row["decision"]["score"], row["confidence"]))
    assert list(page(run.path)["images"]) == [row["image"] for row in ordered], "the most doubtful first"
    assert f"{len(escalated)} of {len(found)} images wait for a person" in run.notes[0] and run.asked["mllm_calls"] == 0
    html = (run.path / "review.html").read_text()
    assert f'"certainty": {ordered[0]["decision"]["score"]:.3f}'.rstrip("0") in html
    assert "http://" not in html and "https://" not in html and page(run.path)["run"] in html


def test_the_answers_settle_the_images_and_each_part_is_scored(run: fgvr.Report, home: Path, tmp_path: Path) -> None:
    before, told = {row["image"]: row for row in rows(run.path)}, truth(run.path)
    images = list(told)
    told[images[0]] = ""  # none of these
    wrong = next(id for id in page(run.path)["classes"] if id != told[images[1]])
    told[images[1]] = wrong
    del told[images[2]]  # waits
    reviewed = review(home, answered(run.path, tmp_path / "answers.csv", told))
    after = {row["image"]: row for row in rows(reviewed.path)}
    assert list(after) == list(before), "every image, in its place"
    for image, row in after.items():
        if image not in told:
            assert row == before[image], "what was answered without the person stays as it was"
        else:
            assert (row["by"], row["prediction"]) == ("person", told[image])
            assert row["slow"]["status"] == ("answered" if told[image] else "unknown") and row["fast"] == before[image]["fast"]
    with open(reviewed.path / "predictions.csv", encoding="utf-8", newline="") as table:
        listed = {row["file"]: row for row in csv.DictReader(table)}
    assert {image for image, row in listed.items() if row["by"] == "person"} == set(told)
    assert listed[images[0]]["class"] == "unknown" and [i for i, row in listed.items() if row["unsure"] == "yes"] == [images[2]]
    figures, named = reviewed.figures, len(told) - 1
    fast = [row for row in before.values() if not row["decision"]["escalate"]]
    assert (figures.reviewed, figures.unknown, figures.waiting.images, figures.named.images) == (len(told), 1, 1, named)
    assert figures.named.right == (named - 1) / named and figures.share == len(told) / len(before)
    assert figures.without_person.right == sum(row["prediction"] == row["label"] for row in fast) / len(fast)
    assert figures.fast_and_wrong == pytest.approx(sum(row["prediction"] != row["label"] for row in fast) / len(before))
    right = sum(row["prediction"] == row["label"] for row in after.values())
    assert figures.all.right == right / len(after) and reviewed.report is not None and reviewed.report.top1 == figures.all.right
    body = json.loads((reviewed.path / reports.FILE).read_text())
    assert body["review"]["unknown"] == 1 and body["review"]["share_reviewed"] == figures.share
    assert body["notes"][0].startswith(f"a person answered {len(told)} of {len(before)} images")
    assert "none of these" in (reviewed.path / reports.PAGE).read_text()
    assert json.loads((run.path / reports.FILE).read_text())["top1"] == run.top1, "the run itself stays"


def test_the_run_is_found_by_its_name_and_no_model_library_is_imported(
    run: fgvr.Report, home: Path, tmp_path: Path, python: Python
) -> None:
    file = answered(run.path, tmp_path / "my answers.csv", truth(run.path))
    code = f"import sys; from fgvr.cli import main; code = main(['mode=review', {f'answers={file}'!r}, {f'paths.home={home}'!r}]); "
    code += "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules); sys.exit(code)"
    answer = python("-c", code)
    assert answer.returncode == 0, answer.stderr
    assert f"reviewof{run.path}" in "".join(answer.stdout.split()) and "reviewed by a person" in answer.stdout


def test_named_photographs_build_another_base_and_the_former_one_stays(run: fgvr.Report, home: Path, tmp_path: Path) -> None:
    former = Path(page(run.path)["base"])
    content = knowledge_base.content_hash(former)
    told = truth(run.path)
    told[next(iter(told))] = ""
    reviewed = review(home, answered(run.path, tmp_path / "answers.csv", told), "review.learn=true")
    assert reviewed.base is not None and reviewed.learned is not None and reviewed.base.path != former
    assert knowledge_base.content_hash(former) == content
    old, named = knowledge_base.load(former), {image: id for image, id in told.items() if id}
    assert len(reviewed.base.support) == len(old.support) + len(named)
    hashes = {row["image"]: row["sha256"] for row in rows(run.path)}
    by_content = {support.sha256: support.category for support in reviewed.base.support}
    assert all(by_content[hashes[image]] == id for image, id in named.items()), "each under the class that the person gave"
    again = fgvr.evaluate(fgvr.load_config("mode=evaluate", *WORDS, f"paths.home={home}", f"knowledge.learned={reviewed.learned}"))
    assert {row["image"] for row in rows(again.path)} == set(hashes) - set(named), "what was learned is tested no more"
    assert any(f"{len(named)} photographs named in a review are among the support images" in note for note in again.notes)
    assert any("read a promise of risk as one about new images" in note for note in again.notes)
    # A second review learns on top of the first.
    more = truth(again.path)
    twice = review(home, answered(again.path, tmp_path / "more.csv", more), "review.learn=true")
    assert twice.base is not None and len(twice.base.support) == len(reviewed.base.support) + len(more)
    assert reviewed.learned.exists() and twice.learned != reviewed.learned


def test_photographs_without_labels_are_reviewed_and_learned_too(home: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "unsorted"
    photographs.mkdir()
    dataset = Session(fgvr.load_config(*WORDS, f"paths.home={home}")).dataset
    for place, file in enumerate(sample.image for sample in dataset.split.test[::4]):
        shutil.copy(file, photographs / f"IMG {place}.png")
    words = (*WORDS[:-1], "trigger=always", f"image={photographs}", f"paths.home={home}")
    answers = fgvr.load_config("mode=classify", *words)
    modes.perform(answers)
    [folder] = {file.parent for file in (home / "runs/classify").glob("*/review.json")}
    body = page(folder)
    images = list(body["images"])
    assert sorted(images) == sorted(file.name for file in photographs.iterdir())
    known = next(iter(body["classes"]))
    file = answered(folder, tmp_path / "answers.csv", {images[0]: known, images[1]: ""})
    reviewed = review(home, file, "review.learn=true")
    assert reviewed.report is None and reviewed.figures.all.right is None and reviewed.figures.waiting.images == len(images) - 2
    assert {row["by"] for row in rows(reviewed.path)} == {"person", "fast"} and (reviewed.path / reports.PAGE).exists()
    assert reviewed.base is not None and images[0] in {Path(support.key).name for support in reviewed.base.support}
    assert reviewed.learned is not None
    (photographs / images[0]).unlink()
    with pytest.raises(fgvr.DatasetError, match=f"(?s){images[0]}.*is not there any more; put it back, or take its row out of"):
        fgvr.evaluate(fgvr.load_config("mode=evaluate", *WORDS, f"paths.home={home}", f"knowledge.learned={reviewed.learned}"))


def test_a_promise_of_risk_holds_for_what_was_answered_without_the_person(home: Path, tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith("trigger")]
    promised = fgvr.evaluate(fgvr.load_config("mode=evaluate", *words, "trigger.target=risk:0.4@0.2", f"paths.home={home}"))
    told = truth(promised.path)
    reviewed = review(home, answered(promised.path, tmp_path / "answers.csv", told))
    assert any("risk" in note for note in promised.notes) and reviewed.report is not None
    assert set(note for note in promised.notes if "wait for a person" not in note) <= set(reviewed.report.notes), "said again"
    without = [row for row in rows(reviewed.path) if row["by"] == "fast"]
    wrong = sum(row["prediction"] != row["label"] for row in without)
    assert reviewed.figures.fast_and_wrong == pytest.approx(wrong / promised.n)
    assert len(without) == promised.n - len(told)


def test_a_run_without_doubt_asks_for_nothing(home: Path, tmp_path: Path) -> None:
    sure = fgvr.evaluate(fgvr.load_config("mode=evaluate", *WORDS[:-1], "trigger=never", f"paths.home={home}"))
    assert sure.notes[0] == "a person need look at none of 40 images" and page(sure.path)["images"] == {}


# --- bad input -----------------------------------------------------------------------------------------------------------------


def test_answers_to_another_run_are_refused_whichever_way(run: fgvr.Report, home: Path, tmp_path: Path, capsys) -> None:
    file = answered(run.path, tmp_path / "answers.csv", truth(run.path))
    other = fgvr.evaluate(fgvr.load_config("mode=evaluate", *WORDS[:-1], "trigger.target=slow_rate:0.9", f"paths.home={home}"))
    assert main(["mode=review", f"answers={file}", f"paths.home={home}", f"review.run={other.path}"]) == 3
    assert "answers of another run" in capsys.readouterr().err
    file.write_text(file.read_text(encoding="utf-8-sig").replace(page(run.path)["run"], "review-000000000000"))
    assert main(["mode=review", f"answers={file}", f"paths.home={home}"]) == 3
    told = capsys.readouterr().err
    assert "holds answers of the run review-000000000000" in told and "review.run=FOLDER" in told
    assert main(["mode=review", f"answers={file}", f"paths.home={home}", f"review.run={tmp_path / 'nowhere'}"]) == 3
    assert "is no folder" in capsys.readouterr().err


def test_one_wrong_row_changes_nothing(run: fgvr.Report, home: Path, tmp_path: Path, capsys) -> None:
    told = truth(run.path)
    good = review(home, answered(run.path, tmp_path / "answers.csv", told))
    kept = (good.path / runs.PREDICTIONS).read_bytes()
    learned = sorted((home / "learned").glob("*")) if (home / "learned").exists() else []
    answered(run.path, tmp_path / "answers.csv", told | {"nothing.png": next(iter(told.values()))})
    assert main(["mode=review", f"answers={tmp_path / 'answers.csv'}", f"paths.home={home}", "review.learn=true"]) == 3
    said = capsys.readouterr().err
    assert "nothing.png" in said and "nothing was changed" in said and "Traceback" not in said
    assert (good.path / runs.PREDICTIONS).read_bytes() == kept
    assert (sorted((home / "learned").glob("*")) if (home / "learned").exists() else []) == learned


def test_a_run_that_was_made_again_needs_its_new_page(run: fgvr.Report, home: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    file = answered(copy, tmp_path / "answers.csv", truth(copy))
    lines = (copy / runs.PREDICTIONS).read_text().splitlines(keepends=True)
    (copy / runs.PREDICTIONS).write_text("".join(line for line in lines if json.loads(line)["image"] != next(iter(truth(run.path)))))
    assert main(["mode=review", f"answers={file}", f"paths.home={home}", f"review.run={copy}"]) == 3
    assert "has changed since the page was written" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "answers is needed here: the answers.csv that a review page"),
        (("answers=",), 2, "answers"),
        (("answers=nothing.csv",), 3, "nothing.csv does not exist; answers= takes"),
        (("answers=nothing.csv", "review.learn=perhaps"), 2, "review.learn=perhaps: must be one of true, false"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(words: tuple[str, ...], code: int, told: str, home: Path, capsys) -> None:
    assert main(["mode=review", *words, f"paths.home={home}"]) == code
    assert told in capsys.readouterr().err.replace("\n", " ")


def test_what_belongs_to_the_run_cannot_be_changed(run: fgvr.Report, home: Path, tmp_path: Path, capsys) -> None:
    file = answered(run.path, tmp_path / "answers.csv", truth(run.path))
    assert main(["mode=review", f"answers={file}", f"paths.home={home}", "dataset.shots=7", "trigger=never"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "dataset, trigger: mode=review takes all of this from the run" in said


def test_a_run_that_asked_no_person_has_no_review(home: Path, tmp_path: Path, capsys) -> None:
    plain = fgvr.evaluate(fgvr.load_config("mode=evaluate", "models=fake", *WORLD, "trigger=never", f"paths.home={home}"))
    file = tmp_path / "answers.csv"
    file.write_text("run,image,class_name\nreview-0,a,b\n")
    assert main(["mode=review", f"answers={file}", f"paths.home={home}", f"review.run={plain.path}"]) == 3
    assert "only a run with slow=person asks a person" in capsys.readouterr().err.replace("\n", " ")


def test_what_a_base_has_from_elsewhere_is_not_lost_by_learning(run: fgvr.Report, home: Path, tmp_path: Path, capsys) -> None:
    """The page of a run whose base knows images that the dataset lacks: settled, but nothing is built without them."""
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    file = answered(copy, tmp_path / "answers.csv", truth(copy))
    other = fgvr.build_knowledge_base(fgvr.load_config("mode=build_knowledge_base", *WORDS, "dataset.shots=8", f"paths.home={home}"))
    (copy / "review.json").write_text(json.dumps(page(copy) | {"base": str(other.path)}))
    assert main(["mode=review", f"answers={file}", f"paths.home={home}", f"review.run={copy}", "review.learn=true"]) == 3
    said = capsys.readouterr().err.replace("\n", " ")
    assert "images that birds does not have, and learning would lose them" in said and "fgvr add" in said


def test_the_doctor_needs_no_mllm_where_a_person_answers(home: Path) -> None:
    found = modes.perform(fgvr.load_config("mode=doctor", *WORDS, f"paths.home={home}")).findings
    assert [finding for finding in found if finding.topic == "slow"] == []
