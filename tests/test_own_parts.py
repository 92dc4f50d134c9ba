"""A part of the user's own that raises, or returns what it must not: named with its place, refused with what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fgvr import cli

SMALL = ["mode=evaluate", "models=fake", "trigger=never", "knowledge.leave_one_out=false", "slow.weight=0.5", "dataset.genera=[2]",
         "dataset.test_per_class=2", "dataset.calibration=0"]  # fmt: skip
TRIGGER = """
from fgvr.types import Decision
import numpy as np

class Shy:
    def __init__(self):
        {made}

    def __call__(self, results):
        {body}
"""
LOADER = """
import numpy as np
from fgvr.runtime.loaders.base import Loader
from fgvr.types import Reply, Scores

class Mine(Loader):
    logit_scale = lambda self, spec: 20.0
    estimate = lambda self, spec: 0
    fingerprint = lambda self, spec: {body!r}
    def load(self, spec, device):
        {loaded}
        return Model()

class Model:
    nbytes = 0
    fingerprint = {body!r}
    def encode(self, images):
        {body}
    encode_text = score = generate = encode
"""
Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Ask:
    """The exit code and what is said of a command with a part from this test's own module, whose name no other test's has."""

    def command(source: str, *words: str) -> tuple[int, str]:
        module = f"own{abs(hash(request.node.name))}"
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "options" / "trigger").mkdir(parents=True)
        (tmp_path / "options" / "trigger" / "shy.yaml").write_text(f"_target_: {module}.Shy\n")
        (tmp_path / "options" / "dataset").mkdir()
        (tmp_path / "options" / "dataset" / "own.yaml").write_text(
            f"_target_: {module}.open_own\nroot: .\nshots: 1\nsplit_seed: 0\nsuperclass: bird\n"
        )
        own = [word.replace("OWN", module) for word in words]
        code = cli.main([f"hydra.searchpath=[{tmp_path / 'options'}]", f"paths.home={tmp_path / 'home'}", *own])
        return code, capfd.readouterr().err.replace(module, "OWN")

    return command


def shy(body: str, made: str = "pass") -> str:
    return TRIGGER.format(body=body, made=made)


def test_an_error_in_ones_own_trigger_is_named_with_its_place_and_its_traceback_is_in_the_log(ask: Ask, tmp_path: Path) -> None:
    code, said = ask(shy("raise ValueError('no such score')"), *SMALL, "trigger=shy")
    assert code == 3 and "bug in fgvr" not in said and "Traceback" not in said
    assert f"error: the trigger OWN.Shy raised ValueError: no such score ({tmp_path}/OWN.py:10); its traceback is in log.txt" in said
    (log,) = (tmp_path / "home" / "runs").rglob("log.txt")
    assert "Traceback (most recent call last)" in log.read_text() and "in __call__" in log.read_text()


def test_the_terminal_shows_the_traceback_when_asked(ask: Ask) -> None:
    code, said = ask(shy("results[99]"), *SMALL, "trigger=shy", "logging.level=debug")
    assert code == 3 and "Traceback" in said and "raised IndexError: list index out of range" in said


@pytest.mark.parametrize(("source", "words", "told"), [
    (shy("pass", "1 / 0"), ("trigger=shy",), "the trigger OWN.Shy raised ZeroDivisionError: division by zero"),
    ("nonsense", ("trigger=shy",), "the trigger OWN.Shy raised NameError"),
    ("def open_own(*, root, shots, split_seed, superclass):\n    {}['a']", ("dataset=own", *SMALL[1:5]),
     "the dataset OWN.open_own raised KeyError: 'a'"),
    (LOADER.format(body="raise RuntimeError('bad weights')", loaded="pass"), ("models.encoder.loader=OWN.Mine",),
     "the models.encoder.loader OWN.Mine raised RuntimeError: bad weights"),
    (LOADER.format(body="pass", loaded="open('weights')"), ("models.encoder.loader=OWN.Mine",),
     "could not be loaded: the models.encoder.loader OWN.Mine raised FileNotFoundError"),
])  # fmt: skip
def test_so_is_one_where_it_is_made_in_a_dataset_and_in_a_loader(ask: Ask, source: str, words: tuple[str, ...], told: str) -> None:
    code, said = ask(source, *(SMALL if "dataset=own" not in words else SMALL[:1]), *words)
    assert code == 3 and told in said and "OWN.py:" in said and "bug in fgvr" not in said, said


def test_a_module_that_is_no_python_is_refused_with_its_line(ask: Ask) -> None:
    code, said = ask("def broken(:", *SMALL, "trigger=shy")
    assert code == 2 and "OWN.py, line 1" in said


def test_what_is_no_class_or_function_is_refused_as_what_it_is(ask: Ask) -> None:
    code, said = ask("Shy = 5", *SMALL, "trigger=shy")
    assert code == 2 and "OWN.Shy: 5 is not a callable object" in said


DECISION = "expected is a list with one fgvr.types.Decision per result"


@pytest.mark.parametrize(("source", "words", "told"), [
    (shy("return results[1:]"), ("trigger=shy",), DECISION),
    (shy("return [Decision(False, 1.0, 0.0)]"), ("trigger=shy",), "returned 1 decisions for 4 results"),
    (shy("return None"), ("trigger=shy",), f"returned None; {DECISION}"),
    (shy("return [0.5 for _ in results]"), ("trigger=shy",), f"returned 0.5; {DECISION}"),
    (shy("return [Decision(False, np.float32('nan'), 0.0) for _ in results]"), ("trigger=shy",), DECISION),
    (shy("return [Decision('no', 1.0, 0.0) for _ in results]"), ("trigger=shy",), DECISION),
    (shy("return [Decision(False, 1.0, 0.0, {'why': 'dark'}) for _ in results]"), ("trigger=shy",), DECISION),
    ("def Shy():\n    return 'shy'", ("trigger=shy",), "the trigger OWN.Shy gives a str; expected is a fgvr.protocols.Trigger"),
    ("def open_own(*, root, shots, split_seed, superclass):\n    return []", ("dataset=own",),
     "the dataset OWN.open_own gives a list; expected is a fgvr.data.datasets.Dataset"),
    (LOADER.format(body="return np.eye(3)[:1]", loaded="pass"), ("models.encoder.loader=OWN.Mine",), "returned 1 answers for"),
    (LOADER.format(body="return np.full((len(images), 3), np.nan)", loaded="pass"), ("models.encoder.loader=OWN.Mine",),
     "expected is a row of finite numbers with norm 1"),
    (LOADER.format(body="return ['yes' for _ in images]", loaded="pass").replace("(self, images)", "(self, images, *_, **__)"),
     ("models.mllm.loader=OWN.Mine",), "models.mllm.loader=OWN.Mine: generate returned 'yes'; expected is a fgvr.types.Reply"),
])  # fmt: skip
def test_what_a_part_returns_is_refused_with_what_was_expected(ask: Ask, source: str, words: tuple[str, ...], told: str) -> None:
    code, said = ask(source, *(SMALL if "dataset=own" not in words else ["mode=evaluate", *SMALL[1:5]]), *words)
    assert code == 3 and told in said and "Traceback" not in said, said


def test_a_trigger_may_decide_with_numpy(ask: Ask) -> None:
    code, said = ask(
        shy("s = np.ones(len(results), np.float32)\n        return [Decision(x < 1, x, 1.0) for x in s]"), *SMALL, "trigger=shy"
    )
    assert code == 0, said


def test_a_bug_where_parts_of_ones_own_take_part_says_so(ask: Ask) -> None:
    code, said = ask(LOADER.format(body="return 5", loaded="pass"), *SMALL, "models.encoder.loader=OWN.Mine")
    assert code == 1 and "or in a part of your own (" in said and "OWN.Mine" in said


@pytest.mark.parametrize("made", ["builtins.dict", "math.pi", "os.path"])
def test_what_cannot_be_called_with_the_keys_is_a_wrong_configuration(made: str, ask: Ask) -> None:
    code, said = ask("", *SMALL, f"trigger._target_={made}")
    assert code == 2 and said.startswith(f"error: {made}: "), said
