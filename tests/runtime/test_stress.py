"""Promises 1 to 6 at once, under storms of threads and faults: see `storm.py`. All three hundred: `make check-long`."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import pytest

from .storm import Verdict, quick_gc, storms


@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 20), marks=pytest.mark.slow)], ids=lambda s: f"{s.start}-{s.stop - 1}")
def test_storms_of_threads_leave_nothing_behind(seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    verdict = weather(seeds, caplog)
    assert verdict.good, verdict
    assert verdict.leases > 50 * len(seeds) and verdict.faults > 3 * len(seeds)  # it did rain


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_storms(caplog: pytest.LogCaptureFixture) -> None:
    verdict = weather(range(300), caplog)
    assert verdict.good, verdict
    assert verdict.leases > 15_000 and verdict.faults > 900


def weather(seeds: range, caplog: pytest.LogCaptureFixture) -> Verdict:
    with caplog.at_level(logging.CRITICAL), quick_gc():
        return storms(seeds)


def test_each_mutant_finds_its_place_in_the_sources() -> None:
    root = Path(__file__).resolve().parents[2]
    for mutant in runpy.run_path(str(root / "scripts" / "mutants.py"))["MUTANTS"]:
        assert (root / "fgvr" / "runtime" / mutant.file).read_text().count(mutant.old) == 1, f"scripts/mutants.py: {mutant.name}"
