"""Whatever stdout and stderr are: no traceback, and the exit code that a Unix tool would have."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fgvr
from fgvr import cli
from fgvr.agents.calibration import Calibrated, Expectation, Logistic
from fgvr.modes.runs import surprises
from fgvr.types import Candidate, Decision, FastResult, History, Prediction
from fgvr.utils.files import atomic_write
from fgvr.utils.logging import setup_logging

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=3", "dataset.calibration=0"]


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`FGVR` in the line is the command."""
    command = line.replace("FGVR", f"{sys.executable} discovering.py")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, **variables},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's redirections")
@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("FGVR --help | true", (0, 141)),  # a short text may fit into the pipe
        ("FGVR mode=plan | true", (0, 141)),
        ("FGVR --help >&-", (0,)),
        ("FGVR mode=plan >&-", (0,)),
        ("FGVR mode=nonsense 2>&-", (2,)),
        ("FGVR mode=nonsense 2>/dev/full", (2,)),
        ("FGVR --help >/dev/full", (3,)),
        ("FGVR mode=plan >/dev/full", (3,)),
    ],
)
def test_streams_that_cannot_be_written(line: str, codes: tuple[int, ...]) -> None:
    answer = shell(line)
    assert answer.returncode in codes, answer.stderr
    assert "Traceback" not in answer.stderr and "Exception ignored" not in answer.stderr
    assert answer.returncode != 3 or ("standard output" in answer.stderr and "No space left" in answer.stderr)


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        pytest.param({"LANG": "C", "LC_ALL": "C"}, marks=pytest.mark.slow),
        pytest.param({"TERM": "dumb", "COLUMNS": "20"}, marks=pytest.mark.slow),
    ],
)
def test_a_name_that_the_terminal_cannot_show_is_replaced(variables: dict[str, str], tmp_path: Path) -> None:
    for name in ("kite \U0001f985", "rook"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (24, 24), (40 * i, 60 * len(name), 90)).save(tmp_path / "birds" / name / f"{i}.png")
    words = f"mode=classify image={tmp_path / 'birds'} dataset=folder dataset.root={tmp_path / 'birds'} dataset.shots=2 models=fake"
    answer = shell(f"FGVR {words} paths.home={tmp_path / 'home'}", **variables)
    assert answer.returncode == 0, answer.stderr
    assert "kite" in answer.stdout and "Traceback" not in answer.stderr


@pytest.mark.parametrize("number", ["ENOLCK", "EIO", "ELOOP", "EMFILE", "ETIMEDOUT", "ESTALE", "EACCES", "ENOSPC", "EROFS"])
def test_what_the_system_refuses_is_named_with_its_path(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = getattr(errno, number)

    def job(cfg: object) -> None:
        raise OSError(code, os.strerror(code), "/some/place")

    assert cli.main(["mode=plan"], job=job) == 3
    assert f"error: /some/place: {os.strerror(code)}" in capsys.readouterr().err


def test_full_memory_is_named_with_a_cure(capsys: pytest.CaptureFixture[str]) -> None:
    def job(cfg: object) -> None:
        raise MemoryError

    assert cli.main(["mode=plan"], job=job) == 3
    assert "main memory is full; write a smaller batch size" in capsys.readouterr().err


def test_a_bug_of_ours_still_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def job(cfg: object) -> None:
        raise ZeroDivisionError("ours")

    assert cli.main(["mode=plan"], job=job) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "This is a bug in fgvr" in said


def test_a_trigger_that_is_never_sure_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mode=evaluate", "trigger=sare", "dataset.shots=4", *SMALL]) == 0
    assert "doubts every image: with 4 images per class" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["mode=evaluate", "trigger=always", "dataset.shots=4", *SMALL]) == 0
    assert "never sure enough" not in capsys.readouterr().out


def test_more_doubt_than_the_trigger_expected_is_said() -> None:
    def told(doubted: int, of: int = 160) -> list[str]:
        fast = FastResult("0" * 64, (Candidate("1", 0.9, 0.5, 0.5),), 0.9, 0.9, 0.1, True, History(3, 2, 9))
        seen = [Prediction(str(i), "0" * 64, None, "1", "crow", 0.9, "fast", fast, Decision(i < doubted, 0.4, 0.5)) for i in range(of)]
        return surprises(seen, session)

    model = Logistic(*np.zeros((3, 5)), intercept=0.0)
    trigger = Calibrated(model, 0.5, Expectation(slow_rate=0.3, precision=0.96, n=160))
    session: Any = SimpleNamespace(config=fgvr.load_config(), trigger=trigger)
    [said] = told(84)
    assert "doubts 52.5% of these images and expected 30%: they are harder than the support images" in said
    assert told(60) == [] == told(6, of=8), "which chance alone can bring about"


def test_classify_says_what_the_models_do_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 40), "green").save(tmp_path / "photo.png")
    small = ["dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.shots=2", "dataset.calibration=0"]
    assert cli.main(["mode=classify", f"image={tmp_path / 'photo.png'}", "trigger=never", *small]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "these models know only rendered birds" in said and "answered with tiny and tiny, among the" in said


def test_a_full_disk_is_named_with_file_and_cure_and_its_log_ends_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def job(cfg: object) -> None:
        logger = setup_logging(file=tmp_path / "log.txt")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        for _ in range(4):
            logger.info("a line that fills the log")
        atomic_write(tmp_path / "result.json", b"x" * 200)

    try:
        assert cli.main(["mode=plan"], job=job) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        setup_logging()
    said = " ".join(capsys.readouterr().err.split())
    assert f"error: {tmp_path / 'result.json'}: File too large; make room, then run the same command again" in said
    assert "Logging error" not in said and said.count("is written no further") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]
