"""For all tests: no network, quiet threads, homes that vanish, and GPU tests only where there is a GPU."""

from __future__ import annotations

import functools
import gc
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig

from scripts.lock import moved

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other core is the other process's

# No test survives a power cut, and a killed process loses nothing. Waiting for the disk took a tenth of the suite, and SQLite waits too:
# what tests write lies in main memory where there is room (1 GiB, taken away at the end), also for other processes.
os.fsync = lambda fd: None
MEMORY = "/dev/shm"
if os.path.isdir(MEMORY) and shutil.disk_usage(MEMORY).free > 8 << 30 and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)

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
    """Hydra composes each choice among the groups' options once (.1 s); plain values are set on a copy of it, as our own sweeper does.
    What depends on the environment is resolved when read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override, OverrideType
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fgvr.config import composing, overrides

    original, options = composing.composed, overrides.groups()
    parsed = functools.cache(OverridesParser.create().parse_override)
    known: dict[tuple[str, ...], bytes] = {}

    def is_value(override: Override) -> bool:
        plain = override.type is OverrideType.CHANGE and not override.is_hydra_override() and not override.is_sweep_override()
        return plain and override.package is None and override.key_or_group not in options

    def composed(words: Sequence[str], tree: Path | None = None) -> DictConfig:
        try:
            values = [override for word in words if is_value(override := parsed(word))]
            choices = tuple(word for word in words if not is_value(parsed(word)))
            if choices not in known:
                known[choices] = pickle.dumps(original(choices, tree))
            cfg: DictConfig = pickle.loads(known[choices])
            for override in values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
            return cfg
        except (HydraException, OmegaConfBaseException):
            return original(words, tree)  # it has the words for what is wrong

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "composed", composed)
        yield


@pytest.fixture(autouse=True, scope="session")
def measured_quickly() -> Iterator[None]:
    """What this process holds is taken for its anonymous pages: the kernel walks all its pages for the exact figure (13 ms with torch), and
    each run asks five times. Other processes, and tests with figures of their own, do it as ever."""
    from fgvr.runtime import machine

    def memory_of(process: psutil.Process | None = None) -> machine.ProcessMemory:
        memory = (process or psutil.Process()).memory_info()
        return machine.ProcessMemory(memory.rss - getattr(memory, "shared", 0), memory.rss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "memory_of", memory_of)
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
