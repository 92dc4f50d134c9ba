"""File systems without locks (some network disks): what writes is refused by name, what only reads still works."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fgvr import cli
from fgvr.errors import StoreError
from fgvr.utils.files import HeldError, acquire_lock, file_lock

fcntl = pytest.importorskip("fcntl")
SMALL = ["models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.calibration=0", "dataset.shots=2"]


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def no_locks(request: pytest.FixtureRequest, intercept) -> str:
    without_locks(intercept, getattr(errno, request.param))
    return request.param


def without_locks(intercept, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, "as on some network disks")

    intercept(fcntl, "flock", flock)


def test_what_writes_names_the_folder_and_advises_a_local_disk(
    no_locks: str, data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["mode=evaluate", *SMALL]) == 3
    said = " ".join(capsys.readouterr().err.split())
    named = said.partition("the file system of ")[2]
    assert named.startswith((str(data), str(home))) and "has no file locks" in said and "local disk" in said and "paths.home=" in said


@pytest.mark.parametrize("mode", ["plan", "memory", "cache"])
def test_what_only_reads_works(mode: str, no_locks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"mode={mode}", *SMALL]) == 0, capsys.readouterr().err


def test_a_finished_run_is_still_replayed(home: Path, intercept, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mode=evaluate", *SMALL]) == 0
    run = next(home.glob("runs/evaluate/*/predictions.jsonl"))
    without_locks(intercept, errno.ENOLCK)
    assert cli.main(["mode=replay", f"predictions={run}", "trigger=never", *SMALL]) == 0, capsys.readouterr().err


def test_a_lock_is_for_one_holder_and_its_error_names_the_file(tmp_path: Path) -> None:
    with file_lock(tmp_path / "x.lock"), pytest.raises(HeldError, match="x.lock"):
        acquire_lock(tmp_path / "x.lock")
    acquire_lock(tmp_path / "x.lock").release()


def test_any_other_error_of_a_lock_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="input/output error") as caught:
        acquire_lock(tmp_path / "x.lock")
    assert not isinstance(caught.value, StoreError)


def test_the_package_imports_without_the_modules_that_windows_lacks(python) -> None:
    code = (
        "import sys, psutil, subprocess; sys.modules |= dict.fromkeys(('fcntl', 'resource', 'pwd', 'grp', 'termios')); "
        "import fgvr.modes, fgvr.store.journal, fgvr.utils.files, fgvr.runtime.devices.cpu, fgvr.modes.evaluating; print('imported')"
    )
    answer = python("-W", "ignore", "-c", code)
    assert answer.stdout == "imported\n", answer.stderr
    assert answer.returncode == 0
