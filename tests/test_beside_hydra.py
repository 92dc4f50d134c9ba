"""A program that uses Hydra itself asks for our configurations, from several threads: it gets them, and its own Hydra stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
import fgvr, hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

W = ("models=fake", "dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.calibration=0", "dataset.shots=2", "logging=quiet")

@hydra.main(config_path="conf", config_name="config", version_base=None)
def program(cfg):
    around, version = GlobalHydra.instance().hydra, hydra.version.getbase()
    assert around is not None or "-m" in sys.argv
    with ThreadPoolExecutor(4) as pool:
        seeds = [one.seed for one in pool.map(lambda seed: fgvr.load_config(*W, f"seed={seed}"), range(4))]
    report = fgvr.evaluate(fgvr.load_config("mode=evaluate", *W, f"seed={cfg.a}"))
    assert GlobalHydra.instance().hydra is around and hydra.version.getbase() is version
    assert HydraConfig.get().job.name == "program"
    sys.stdout.write(f"{seeds} {report.path.parts[-3:-1]}\\n")

program()
"""


@pytest.mark.parametrize("words", [(), pytest.param(("-m", "a=1,2"), marks=pytest.mark.slow)], ids=["once", "swept"])
def test_our_configurations_are_composed_inside_another_hydra_program(
    tmp_path: Path, python: Callable[..., CompletedProcess[str]], words: tuple[str, ...]
):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    answer = python("program.py", *words, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    told = [line for line in answer.stdout.splitlines() if line.startswith("[0,")]
    assert told == ["[0, 1, 2, 3] ('runs', 'evaluate')"] * (2 if words else 1), "its sweep is none of ours"
