"""The command line: quick help, words that mean what they say, errors with their exit code and their cure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fgvr
from fgvr import cli
from fgvr.config import overrides
from fgvr.config.fields import NEEDED
from fgvr.errors import ConfigError, DatasetError
from fgvr.utils.paths import config_dir

Answer = tuple[int, str, list[Any]]
Ask = Callable[..., Answer]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Exit code, what was said, and the configurations that reached the job."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("FGVR_SWEEP", "")

    def call(*words: str, raises: BaseException | None = None) -> Answer:
        seen: list[Any] = []

        def job(cfg: Any) -> None:
            seen.append(cfg)
            if raises is not None:
                raise raises

        code = cli.main(words, job)
        told = capsys.readouterr()
        return code, told.out + told.err, seen

    return call


# --- help --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "unneeded"),
    [
        (["--help"], 0, {"hydra", "omegaconf", "pydantic", "filelock", "numpy", "torch"}),
        (["mode=evaluate", "datset=birds"], 2, {"pydantic", "filelock", "rich", "numpy", "torch"}),
        (["mode=plan"], 0, {"filelock", "fgvr.runtime.conversation", "fgvr.types.recognition", "numpy", "torch", "transformers"}),
    ],
    ids=["help", "a wrong key", "a plan"],
)
def test_a_command_imports_only_what_its_answer_needs(
    words: list[str], code: int, unneeded: set[str], python: Callable[..., CompletedProcess[str]]
) -> None:
    answer = python("-c", f"import sys; from fgvr.cli import main; code = main({words}); print(*sys.modules); sys.exit(code)")
    assert answer.returncode == code, answer.stderr
    assert not unneeded & set(answer.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words", [["mode=cache"], ["memory", "system", "--json"], ["-m", "--version"]], ids=["a mode", "a command", "a sweep"]
)
def test_garbage_is_collected_while_a_command_works(words: list[str], python: Callable[..., CompletedProcess[str]]) -> None:
    """Not before: its start leaves next to none."""
    answer = python("-c", f"import gc; from fgvr.cli import program; code = program({words}); print(code, gc.isenabled())")
    assert answer.stdout.splitlines()[-1] == "0 True", answer.stderr


def test_help_lists_every_mode_with_a_line_and_every_option(ask: Ask) -> None:
    _, text, _ = ask("--help")
    lines = text.splitlines()
    for mode in overrides.groups()["mode"]:
        assert any(line.split()[:1] == [mode] and len(line.split()) > 3 for line in lines), mode
    for group, options in overrides.groups().items():
        assert group == "mode" or any(line.split()[:1] == [group] and all(o in line for o in options) for line in lines), group
    assert "birds*" in text


# --- words that are passed on ------------------------------------------------------------------------------------------------


def test_without_words_the_default_mode_runs(ask: Ask) -> None:
    code, _, [cfg] = ask()
    assert code == 0
    assert cfg == fgvr.load_config()


@pytest.mark.parametrize(
    "path", ["mon été.jpg", "a=b.jpg", "[x] (1), {y}.jpg", 'it\'s "here".png', "back\\slash\\", "~/b.jpg", "#1 100%.jpg"]
)
def test_paths_arrive_as_they_were_typed(ask: Ask, path: str) -> None:
    code, told, [cfg] = ask("mode=classify", f"image={path}")
    assert code == 0, told
    assert cfg.image == os.path.expanduser(path)


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=2).filter(lambda p: p[0] not in "'\"~" and p not in overrides.LITERALS)
)
def test_any_path_survives_hydras_grammar(path: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    [word] = overrides.tidy([f"dataset.root={path}"])
    assert OverridesParser.create().parse_override(word).value() == path


def test_a_path_already_in_quotes_or_null_is_left_alone() -> None:
    assert overrides.tidy(["dataset.root='a b'", "knowledge.path=null"]) == ["dataset.root='a b'", "knowledge.path=null"]


def test_flags_and_overrides_may_stand_in_any_order(ask: Ask) -> None:
    code, _, seen = ask("mode=evaluate", "-m", "trigger=never,always")
    assert code == 0
    assert [cfg.trigger.factory.rpartition(".")[2] for cfg in seen] == ["Never", "Always"]


def test_cfg_job_shows_the_configuration_and_runs_nothing(ask: Ask) -> None:
    code, told, seen = ask("mode=classify", "-c", "job", "image=a b.jpg")
    assert (code, seen) == (0, [])
    assert "image: a b.jpg" in told


def test_the_same_sweep_has_the_same_name(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(*words: str) -> str:
        ask("-m", *words)
        return os.environ["FGVR_SWEEP"]

    assert name("seed=1,2", "mode=plan") == name("mode=plan", "seed=1,2", "run.fresh=true") != name("mode=plan", "seed=1,3")


# --- words that cannot be meant ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("mode=buld", "Nearest: build_experience_base, build_knowledge_base"),
        ("mode=buld", "The options of mode: baselines, build_experience_base, build_knowledge_base, cache, classify, "),
        ("trigger=calibratd", "Nearest: calibrated"),
        ("mode=evaluate trigger.treshold=1", "trigger.threshold (with trigger=sare"),
        ("trigger=sare trigger.treshold=1", "Nearest: trigger.threshold"),
        ("knowledge.buidl=never", "knowledge.build"),
        ("mod=evaluate", "Nearest: mode"),
        ("models/mlm=tiny", "models/mllm"),
        ("models.mllm=tiny", "write models/mllm=tiny (slash, not dot)"),
        ("models/mllm/source=x", "models.mllm.source"),
        ("mode=evaluate image=a.jpg", "image (with mode=classify)"),
        ("slow.bogus=1", "slow.candidates"),
        ("--mode=evaluate", "write mode=evaluate"),
        ("--mode evaluate", "write mode=evaluate"),
        ("trigger=never evaluate", "write mode=evaluate"),
        ("README.md", "write mode=classify image=README.md"),
        ("srt heap --into out", "srt is no mode and no command. Nearest: sort"),
        ("evalute trigger=never", "Nearest: evaluate"),
        ("xyzzy", "fgvr --help lists them"),
        ("mode=classify image=my bird.jpg", "'image=my bird.jpg' (in quotes"),
        ("trigger=never,always", "--multirun"),
        ("-m trigger=never,alwys", "Nearest: always"),
        ("seed=1=2", "quotes"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(ask: Ask, monkeypatch: pytest.MonkeyPatch, words: str, hint: str) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    code, told, seen = ask(*words.split())
    assert (code, seen) == (2, [])
    assert hint in told
    assert "Traceback" not in told


# --- what a job may end with -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no such budget"), 2),
        (DatasetError("no images there"), 3),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("our bug"), 1),
    ],
)
@pytest.mark.parametrize("words", [["mode=plan"], ["-m", "mode=plan", "seed=1,2"]])
def test_every_kind_of_end_has_its_exit_code(ask: Ask, error: BaseException, code: int, words: list[str]) -> None:
    got, told, _ = ask(*words, raises=error)
    assert got == code
    assert ("Traceback" in told) == (code == 1)
    assert str(error) in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mode=classify"], "image is needed here: an image or a folder of images, such as image='my bird.jpg'"),
        (["mode=discover"], "images is needed here: a folder of unlabelled images, such as images=photos"),
        (["mode=replay"], "predictions is needed here: a run's folder or the predictions.jsonl in it, such as predictions="),
        (["mode=compare"], "runs is needed here: the folders of two runs, such as runs=["),
        (["mode=evaluate", "dataset=folder"], "dataset.root is needed here: the folder that holds the images, such as dataset.root=photos"),
    ],
)
def test_a_value_that_is_missing_is_asked_for_by_what_it_is(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert says in capsys.readouterr().err


def test_every_key_without_a_default_says_what_it_is() -> None:
    found = set()
    for file in config_dir().rglob("*.yaml"):
        group = file.parent.relative_to(config_dir()).as_posix()
        for key in re.findall(r"(?m)^([a-z_]+): \?\?\?", file.read_text(encoding="utf-8")):
            found.add(key if group == "mode" else f"{group}.{key}")
    assert found == set(NEEDED)
    for key, what in NEEDED.items():
        assert f"such as {key}=" in what


@pytest.mark.parametrize("value", ["", "null", "3"])
@pytest.mark.parametrize(
    "words", [["mode=classify", "image"], ["mode=discover", "images"], ["mode=replay", "predictions"], ["mode=compare", "runs"]]
)
def test_a_value_that_names_nothing_is_refused_with_an_example(words: list[str], value: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main([words[0], f"{words[1]}={value}"])
    told = capsys.readouterr().err
    if value == "3":  # a path like any other
        assert code == 3 and "3 does not exist" in told.replace("3 is no folder", "3 does not exist")
    else:
        assert code == 2 and f"such as {words[1]}=" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mode=compare", "runs={file}"], "is a file, and no report.json lies beside it; give the folder of a run"),
        (["mode=compare", "runs=[{file},{folder}]"], "is a file, and no report.json lies beside it"),
        (["mode=compare", "runs=[{folder}/gone,{folder}]"], "gone does not exist; give the folders of two runs, or of one sweep"),
        (["mode=compare", "runs={folder}/gone"], "gone does not exist; give the folders"),
        (["mode=compare", "runs={folder}"], "is no sweep with finished jobs; give two runs"),
        (["mode=compare", "runs=[{one},{folder}]"], "holds no finished evaluation"),
        (["mode=compare", "runs={one}"], "is one run; give the one to compare it with as well: runs=["),
        (["mode=compare", "runs={one}/report.json"], "is one run; give the one to compare it with"),
        (["mode=discover", "images={file}"], "is no folder; images= takes a folder"),
        (["mode=replay", "predictions={folder}"], "holds no predictions.jsonl; predictions= takes a run's folder"),
        (["mode=replay", "predictions={folder}/gone"], "gone does not exist; predictions= takes a run's folder"),
        (["mode=evaluate", "dataset=folder", "dataset.root={file}"], "is a file; dataset.root must be the folder"),
        (["mode=evaluate", "knowledge.path={file}"], "is a file; knowledge.path takes the folder of a knowledge base"),
        (["mode=evaluate", "models.mllm.source={file}"], "is a file; models.mllm.source takes the folder of a model"),
        (["mode=evaluate", "models.encoder.source={file}"], "is a file; models.encoder.source takes the folder of a model"),
    ],
)
def test_a_file_for_a_folder_and_the_reverse_are_named_with_the_cure(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").write_text("nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "report.json").write_text('{"classes": {}}')
    (tmp_path / "one" / "predictions.jsonl").touch()
    places = {"file": tmp_path / "file.txt", "folder": tmp_path / "folder", "one": tmp_path / "one"}
    world = ("dataset.genera=[2,2]", "dataset.test_per_class=3", "dataset.shots=2") if "dataset=folder" not in words else ()
    code = cli.main([word.format(**places) for word in words] + (list(world) if words[0] == "mode=evaluate" else []))
    told = capsys.readouterr().err
    assert code in (2, 3) and says in told, told
    assert "Traceback" not in told
