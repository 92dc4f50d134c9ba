"""For all tests: no network, quiet threads, homes that vanish, and GPU tests only where there is a GPU."""

from __future__ import annotations

import functools
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from scripts.lock import moved

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other core is the other process's

os.fsync = lambda fd: (
    None
)  # no test survives a power cut, and a killed process loses nothing: waiting for the disk took a tenth of the suite

ROOT = Path(__file__).resolve().parents[1]
MOVED = tuple(moved())


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors. Deprecations of libraries are so only in the locked environment; elsewhere they are listed at the end.
    fgvr itself never warns with these categories."""
    if MOVED:
        for category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
            config.addinivalue_line("filterwarnings", f"default::{category}")


def pytest_report_header() -> str:
    changes = ", ".join(f"{name} {locked} -> {installed}" for name, locked, installed in MOVED)
    return f"not as in constraints.txt: {changes}" if MOVED else "libraries: as in constraints.txt"


@pytest.fixture(autouse=True, scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`paths.data` of all tests and of all their processes: a world is drawn once. Who damages its images draws its own."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVR_DATA", str(shared))
        yield shared


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`paths.home` of this test."""
    monkeypatch.setenv("FGVR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """The same words are composed once by Hydra (.2 s): many tests share them. What depends on the environment is resolved when read."""

    from fgvr.config import composing

    original, known = composing.composed, {}

    def composed(words: Sequence[str], tree: Path | None = None) -> DictConfig:
        if (key := tuple(words)) not in known:
            known[key] = original(words, tree)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "composed", composed)
        yield


@pytest.fixture(autouse=True, scope="module")
def collected_quickly() -> None:
    """The pool collects garbage whenever a model leaves: among what the libraries keep for ever (a million objects) that takes .6 s."""
    gc.collect()  # what the module before left; frozen things are not walked again
    gc.freeze()


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A run sets up the `fgvr` logger; the next test finds it as Python makes it."""
    yield
    for logger in (logging.getLogger("fgvr"), logging.getLogger()):
        for handler in [h for h in logger.handlers if h.get_name() == "fgvr"]:
            logger.removeHandler(handler)
            handler.close()
    logging.getLogger("fgvr").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.fixture(autouse=True)
def words_as_they_were() -> Iterator[None]:
    """A command with Hydra's flags writes `sys.argv`."""
    before = sys.argv[:]
    yield
    sys.argv[:] = before


@pytest.fixture
def intercept() -> Iterator[Callable[..., ExitStack]]:
    """`intercept(owner, name, around)`: calls go to `around(original, *args)` until the test ends, or what is returned is left or closed.

    How fakes are made to fail, to wait or to be counted.
    """
    patches: list[pytest.MonkeyPatch] = []

    def put(owner: Any, name: str, around: Callable[..., Any]) -> ExitStack:
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: Any, **settings: Any) -> Any:
            return around(original, *args, **settings)

        patches.append(pytest.MonkeyPatch())
        patches[-1].setattr(owner, name, call)
        end = ExitStack()
        end.callback(patches[-1].undo)
        return end

    yield put
    for patch in reversed(patches):
        patch.undo()


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A fresh interpreter: `python("-c", "...")`, run in the checkout unless told otherwise."""

    def call(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=110)

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        for item in wanting if not torch.cuda.is_available() else ():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
