"""For all tests: no network, quiet threads, homes that vanish, and GPU tests only where there is a GPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other core is the other process's

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`paths.home` of this test."""
    monkeypatch.setenv("FGVR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A run sets up the `fgvr` logger; the next test finds it as Python makes it."""
    yield
    for logger in (logging.getLogger("fgvr"), logging.getLogger()):
        for handler in [h for h in logger.handlers if h.get_name() == "fgvr"]:
            logger.removeHandler(handler)
            handler.close()
    logging.getLogger("fgvr").setLevel(logging.NOTSET)


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
