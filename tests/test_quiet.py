"""An ordinary run shows lines of fgvr only; what libraries say is in the run's log file."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fgvr.utils.logging import adopt_libraries, own_terminal, setup_logging

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["dataset.genera=[2]", "dataset.test_per_class=2", "dataset.shots=2", "dataset.calibration=0", "logging.quiet=true"]
RUNS = {
    "build": ["mode=build_knowledge_base"],
    "evaluate": ["mode=evaluate", "trigger=always"],
    "sweep": ["-m", "mode=evaluate", "trigger=never,always"],
}
OURS = re.compile(r"^(\s*$|[┌├│└╭╰┏┡]|these models know |trigger expects |leak guard: |for$|birds world|knowledge base: |/.*)")


def fgvr(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "discovering.py", *words, f"paths.home={home}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, env={**os.environ, "COLUMNS": "400"})


@pytest.mark.parametrize("run", [pytest.param(run, marks=() if run == "evaluate" else pytest.mark.slow) for run in RUNS])
def test_a_run_shows_no_line_of_a_library(run: str, tmp_path: Path) -> None:
    answer = fgvr(tmp_path, *RUNS[run], *SMALL)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert [line for line in answer.stdout.splitlines() if not OURS.match(line)] == []


@pytest.mark.slow
def test_classify_shows_no_line_of_a_library(tmp_path: Path) -> None:
    fgvr(tmp_path, "mode=build_knowledge_base", *SMALL)
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 120, 40)).save(tmp_path / "bird.png")
    answer = fgvr(tmp_path, "mode=classify", f"image={tmp_path / 'bird.png'}", "trigger=always", *SMALL)
    assert answer.returncode == 0
    said = [line for line in answer.stderr.splitlines() if "these models know only rendered birds" not in line]
    assert said == []
    assert not re.search(r"(?i)nanobind|warning|transformers|torch|site-packages", answer.stdout)


def test_a_server_shows_no_line_of_a_library(tmp_path: Path) -> None:
    command = [sys.executable, "discovering.py", "mode=serve", "server.port=0", f"paths.home={tmp_path}", *SMALL]
    server = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ.copy())
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if "ready: " in line:  # who is ended before may say that it still computes
            break
    server.send_signal(signal.SIGTERM)
    lines += server.communicate(timeout=60)[0].splitlines()
    assert server.returncode == 0, lines
    assert not re.search(r"(?i)nanobind|warning|uvicorn|transformers|site-packages", "".join(lines))


def test_what_libraries_say_waits_for_the_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noisy = logging.getLogger("noisy_library")
    noisy.propagate = False
    noisy.addHandler(logging.StreamHandler(sys.stderr))
    own_terminal()
    noisy.warning("said before there was a file")
    setup_logging(file=tmp_path / "log.txt")
    noisy.warning("said later")
    noisy.info("of no interest")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("an old name", FutureWarning, stacklevel=1)
    written = (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == ""
    assert "said before" in written and "said later" in written and "an old name" in written and "no interest" not in written


def test_a_notebook_keeps_what_libraries_show() -> None:
    noisy = logging.getLogger("noisy_library_of_a_notebook")
    noisy.addHandler(handler := logging.StreamHandler(sys.stderr))
    setup_logging()
    adopt_libraries()
    assert noisy.handlers == [handler]
