"""The quickstart notebook's code runs as it stands, on models without weights and a small world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgvr.runtime.pool import close_shared

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


def test_the_quickstart_runs_from_top_to_bottom(intercept):
    import fgvr

    small = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=4", "dataset.calibration=0")
    intercept(fgvr, "load_config", lambda load, *words: load(*words, *small))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) <= 15
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert names["report"].n == 24 and len(names["predictions"]) == 8 and names["answers"][0]
    assert "6 classes" in repr(names["recognizer"]) and "trigger" in repr(names["recognizer"])
