"""Libraries come ahead of the first load."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from fgvr.runtime.gc_tools import drop_reference
from fgvr.runtime.loaders import libraries
from fgvr.runtime.loaders.clip import LOADER


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_the_collector_rests_while_they_are_imported_and_is_left_as_it_was(works: bool, there: bool, intercept) -> None:
    seen: list[bool] = []

    def import_module(_: object, name: str) -> SimpleNamespace:
        seen.append(gc.isenabled())
        if not there:
            raise ImportError(name)
        return SimpleNamespace()

    intercept(importlib, "import_module", import_module)
    (gc.enable if works else gc.disable)()
    try:
        if there:
            libraries.import_libraries(LOADER)
        else:
            with pytest.raises(ImportError, match="open_clip"):
                libraries.import_libraries(LOADER)
        assert seen == [False] and gc.isenabled() == works
    finally:
        gc.enable()


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_when_libraries_came_can_still_leave(monkeypatch: pytest.MonkeyPatch, intercept) -> None:
    intercept(importlib, "import_module", lambda _, name: SimpleNamespace())
    monkeypatch.setattr(libraries, "_freezes", None)
    gc.unfreeze()
    libraries.import_libraries(LOADER)
    assert gc.get_freeze_count() == 0, "a notebook's user drops things, too"
    libraries.freeze_after_imports()
    entry = SimpleNamespace(model=_Cycle())
    libraries.import_libraries(LOADER)
    assert (frozen := gc.get_freeze_count()) > 0
    kept = _Cycle()
    libraries.freeze_after_imports()
    libraries.import_libraries(LOADER)
    assert gc.get_freeze_count() <= frozen and kept.itself, "once: a model that is dropped later must be found"
    assert drop_reference(entry)() is None


def test_a_model_that_needs_no_library_brings_none(python: Callable[..., CompletedProcess[str]], home: Path) -> None:
    words = ["mode=evaluate", "models=fake", "dataset.genera=[2]", "dataset.shots=2", "dataset.test_per_class=1", "logging=quiet"]
    said = python(
        "-c", f"import sys; from fgvr.cli import main; assert main({words}) == 0; print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    assert said.stdout.endswith("set()\n"), said.stderr
