"""mode=replay gives what a fresh run with the same settings gives, asks no model, and refuses what the record cannot tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import fgvr
from fgvr import modes
from fgvr.modes import runs
from fgvr.runtime.pool import close_shared
from tests.data.archives import eurosat10

SMALL = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=4", "dataset.calibration=1", "evaluation.batch_size=5")
SETTINGS = {
    "as it was": (),
    "another threshold": ("trigger.target=slow_rate:0.2",),
    "another trigger": ("trigger=sare", "trigger.threshold=0.1"),
    "gates": ("trigger=gates",),
    "random": ("trigger=random", "trigger.slow_rate=0.5"),
    "never": ("trigger=never",),
    "always": ("trigger=always",),
    "oracle": ("trigger=oracle",),
    "another fusion weight": ("fusion.image_weight=0.9", "trigger=always"),
    "another temperature and fewer candidates": ("fusion.temperature=0.05", "fusion.top_k=3", "fusion.rrf_weight=0.3"),
    "another pooling": ("slow.weight=0.2", "trigger=always"),
    "fewer options": ("slow.candidates=3", "trigger=always"),
    "everything at once": ("fusion.image_weight=0.7", "trigger.target=precision:0.9", "slow.answer_fusion=slow"),
}

COVERED = {"another threshold", "gates", "random", "never", "another fusion weight", "fewer options"}  # by the others


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one run that recorded everything and one that recorded what it needed."""
    close_shared()
    home = tmp_path_factory.mktemp("recorded")
    for record in ("all", "needed"):
        fgvr.evaluate(fgvr.load_config(*SMALL, f"paths.home={home}", f"evaluation.record={record}"))
    return home


def recorded(home: Path, record: str) -> Path:
    [found] = [
        c.parent for c in (home / "runs/evaluate").glob("*/config.yaml") if f"record: {record}" in c.read_text() and len_of(c.parent)
    ]
    return found / runs.PREDICTIONS


def len_of(run: Path) -> bool:
    return "slow_rate:0.6" in (run / "config.yaml").read_text() and "image_weight: 0.3" in (run / "config.yaml").read_text()


def verdicts(report: fgvr.Report) -> list[dict]:
    """Everything but what it cost."""
    return [
        {key: value for key, value in json.loads(line).items() if key != "cost"}
        for line in (report.path / runs.PREDICTIONS).read_text().splitlines()
    ]


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=name, marks=pytest.mark.slow if name in COVERED else ()) for name, words in SETTINGS.items()],
)
def test_a_replay_is_the_fresh_run_to_the_last_digit(world: Path, tmp_path: Path, words: tuple[str, ...]):
    file = recorded(world, "all")
    home = tmp_path / "fresh"
    shutil.copytree(world / "knowledge", home / "knowledge")
    replayed = modes.perform(fgvr.load_config("mode=replay", f"predictions={file}", f"paths.home={world}", *words))
    fresh = fgvr.evaluate(fgvr.load_config(*SMALL, f"paths.home={home}", "store.enabled=false", *words))
    assert verdicts(replayed) == verdicts(fresh)
    assert (replayed.top1, replayed.slow_rate, replayed.macro) == (fresh.top1, fresh.slow_rate, fresh.macro)


def replay(world: Path, record: str, *words: str) -> fgvr.Report:
    return modes.perform(fgvr.load_config("mode=replay", f"predictions={recorded(world, record)}", f"paths.home={world}", *words))


def test_what_was_not_recorded_is_refused_with_its_number(world: Path):
    rows = [json.loads(line) for line in recorded(world, "needed").read_text().splitlines()]
    absent = sum(row["slow"] is None for row in rows)
    assert absent
    with pytest.raises(fgvr.StoreError, match=rf"{absent} of the 24 slow answers .* evaluation.record=all"):
        replay(world, "needed", "trigger=always")
    assert replay(world, "needed").n == 24, "what was recorded is enough for the same settings"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("dataset.shots=2",), "dataset is another one"),
        (("slow.decoder=reason",), "slow.decoder is another one"),
        (("slow.target=letter", "slow.exemplars=true"), "slow.target is another one"),
        (("slow.answer_fusion=mllm",), "slow.answer_fusion=mllm, but the run was recorded with slow.answer_fusion=log_linear"),
        (("fusion.name_weight=0.9",), "fusion.name_weight=0.9 ranks all classes anew"),
        (("fusion.top_k=9",), "the record holds the first 5"),
        (("trigger.target=risk:0.1@0.1",), "calibration images"),
        (("predictions=nowhere.jsonl",), "does not exist"),
    ],
)
def test_what_a_record_cannot_tell_is_refused(world: Path, words: tuple[str, ...], told: str):
    with pytest.raises(fgvr.FgvrError, match=told):
        replay(world, "all", *words)


@pytest.fixture(scope="module")
def asked_again(world: Path) -> Path:
    """A run in which the MLLM chose between the two systems' answers."""
    close_shared()
    words = ("mode=evaluate", *SMALL, f"paths.home={world}", "slow.answer_fusion=mllm", "trigger=always", "evaluation.record=all")
    return fgvr.evaluate(fgvr.load_config(*words)).path / runs.PREDICTIONS


def test_a_run_in_which_the_mllm_was_asked_again_is_replayed_only_as_it_was(world: Path, asked_again: Path):
    told = [json.loads(line)["slow"] for line in asked_again.read_text().splitlines()]
    assert any(not slow["log_likelihoods"] for slow in told), "for some images the last word overwrote the first"
    words = ("mode=replay", f"predictions={asked_again}", f"paths.home={world}")
    for other in ("log_linear", "slow"):
        with pytest.raises(fgvr.ConfigError, match=f"slow.answer_fusion={other}, but .*Write slow.answer_fusion=mllm, or run again"):
            modes.perform(fgvr.load_config(*words, f"slow.answer_fusion={other}"))
    for changed in ("fusion.temperature=0.05", "slow.candidates=3"):
        with pytest.raises(fgvr.ConfigError, match="fusion and slow.candidates cannot change"):
            modes.perform(fgvr.load_config(*words, "slow.answer_fusion=mllm", changed))
    replayed = modes.perform(fgvr.load_config(*words, "slow.answer_fusion=mllm", "trigger=random"))
    fresh = fgvr.evaluate(fgvr.load_config("mode=evaluate", *SMALL, f"paths.home={world}", "slow.answer_fusion=mllm", "trigger=random"))
    assert verdicts(replayed) == verdicts(fresh)


def test_what_pictures_were_shown_beside_the_candidates_is_as_recorded(world: Path):
    words = ("mode=evaluate", *SMALL, f"paths.home={world}", "slow.target=letter", "slow.exemplars=true", "trigger=always")
    file = fgvr.evaluate(fgvr.load_config(*words)).path / runs.PREDICTIONS
    replayed = modes.perform(fgvr.load_config("mode=replay", f"predictions={file}", f"paths.home={world}", "trigger=sare"))
    assert json.loads((replayed.path / "report.json").read_text())["config"]["slow"]["exemplars"] is True


def test_replays_of_a_changed_base_are_refused(world: Path, tmp_path: Path):
    run = recorded(world, "all").parent
    shutil.copytree(run, tmp_path / "run")
    note = tmp_path / "run" / runs.BASE
    note.write_text(note.read_text()[:-4] + "beef")
    with pytest.raises(fgvr.KnowledgeError, match="has changed since"):
        modes.perform(fgvr.load_config("mode=replay", f"predictions={tmp_path / 'run' / runs.PREDICTIONS}"))
    note.unlink()
    with pytest.raises(fgvr.StoreError, match="which knowledge base"):
        modes.perform(fgvr.load_config("mode=replay", f"predictions={tmp_path / 'run' / runs.PREDICTIONS}"))


def test_what_the_trigger_takes_from_the_dataset_is_taken_from_the_recorded_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By the command line's own path: `trigger=sare` counts the shots of the dataset it decides on."""
    home = f"paths.home={tmp_path}"
    run = fgvr.evaluate(fgvr.load_config("mode=evaluate", *SMALL, home, "dataset.shots=14", "evaluation.record=all"))
    words = ("trigger=sare", "trigger.threshold=0.1")
    modes.run(fgvr.load_config("mode=replay", f"predictions={run.path / runs.PREDICTIONS}", home, "logging=json", *words))
    replayed = json.loads(capsys.readouterr().out)
    assert replayed["config"]["trigger"]["shots"] == replayed["config"]["dataset"]["shots"] == 14
    fresh = fgvr.evaluate(fgvr.load_config("mode=evaluate", *SMALL, home, "dataset.shots=14", *words))
    assert (replayed["top1"], replayed["slow_rate"]) == (fresh.top1, fresh.slow_rate) and 0 < fresh.slow_rate < 1


def test_neither_torch_nor_a_model_is_needed(world: Path, python: Callable[..., CompletedProcess[str]]):
    code = (
        "import sys; from fgvr.cli import main; "
        f"code = main(['mode=replay', 'predictions={recorded(world, 'all')}', 'paths.home={world}', 'trigger=always', 'logging=json']); "
        "assert code == 0, code; assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    answer = python("-c", code)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["slow_rate"] == 1.0


def test_a_run_whose_dataset_and_keys_have_other_names_now_is_replayed(tmp_path: Path):
    eurosat10(tmp_path / "eurosat")
    words = ("models=fake", "dataset=eurosat10", f"dataset.root={tmp_path / 'eurosat'}", "dataset.shots=2", f"paths.home={tmp_path}")
    fresh = fgvr.evaluate(fgvr.load_config(*words, "evaluation.record=all"))
    assert fresh.path is not None
    answers = [(row["image"], row["prediction"], row["decision"]) for row in verdicts(fresh)]
    config = fresh.path / "config.yaml"
    former = {
        "fgvr.data.benchmarks.open_benchmark": "fgvr.data.field.open_field",
        "answer_fusion: log_linear": "arbitrate: pool",
        "leave_one_out: true": "rehearse: true",
    }
    for now, then in former.items():
        assert now in config.read_text()
        config.write_text(config.read_text().replace(now, then))
    for given in ((), words[1:4]):
        replayed = modes.perform(
            fgvr.load_config("mode=replay", f"predictions={fresh.path / runs.PREDICTIONS}", f"paths.home={tmp_path}", *given)
        )
        assert [(row["image"], row["prediction"], row["decision"]) for row in verdicts(replayed)] == answers
