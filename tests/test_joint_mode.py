"""The joint encoder through the modes: asked only when configured, remembered like any other forward pass, and named in the report."""

from __future__ import annotations

import json

import pytest

import fgvr
from fgvr import modes
from fgvr.modes import runs
from fgvr.runtime.pool import close_shared

SMALL = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=2", "dataset.calibration=1", "evaluation.batch_size=5")


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


@pytest.mark.parametrize("fusion", ["joint", "rerank"])
def test_the_joint_encoder_is_loaded_when_asked_for_and_its_scores_are_in_the_record(fusion: str) -> None:
    words = (*SMALL, f"fusion={fusion}")
    base = fgvr.build_knowledge_base(fgvr.load_config(*words))
    recognizer = fgvr.build_recognizer(fgvr.load_config(*words), base)
    assert fgvr.shared_pool().loads["joint"] == 0  # neither building a base nor making a recognizer asks it
    report = fgvr.evaluate(fgvr.load_config(*words))
    assert report.model_loads["joint"] == 1
    assert any("joint encoder" in note and fusion.replace("joint", "score") in note for note in report.notes)
    rows = [json.loads(line) for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]
    asked = [[c["joint_score"] is not None for c in row["fast"]["candidates"]] for row in rows]
    assert all(any(row) for row in asked)
    assert recognizer.batch_size == 5

    before = fgvr.shared_pool().counters.snapshot().joint_forwards
    assert before > 0
    fgvr.evaluate(fgvr.load_config(*words, "run.fresh=true"))
    assert fgvr.shared_pool().counters.snapshot().joint_forwards == before  # all remembered


def test_without_it_nothing_of_it_is_loaded_or_asked() -> None:
    report = fgvr.evaluate(fgvr.load_config(*SMALL))
    assert report.model_loads["joint"] == 0
    assert fgvr.shared_pool().counters.snapshot().joint_forwards == 0


def test_what_cannot_go_with_it_is_refused_with_the_cure() -> None:
    with pytest.raises(fgvr.ConfigError, match="write online=off"):
        fgvr.load_config(*SMALL, "fusion=joint", "online=statistics")
    report = fgvr.evaluate(fgvr.load_config(*SMALL, "fusion=joint", "evaluation.record=all"))
    with pytest.raises(fgvr.ConfigError, match="run again"):
        modes.perform(fgvr.load_config(*SMALL, "mode=replay", "fusion=joint", f"predictions={report.path / runs.PREDICTIONS}"))
