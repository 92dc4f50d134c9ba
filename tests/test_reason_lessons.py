"""What the stage `compare` teaches (`scripts/tiny`): the pipeline's own question, the true letter, and nothing reserved."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from fgvr.data import birds


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module("tiny.comparing")


def test_the_true_candidate_is_listed_where_its_letter_says_and_the_reply_says_what_is_seen(comparing) -> None:
    rng, true, seen = np.random.default_rng(0), (0, 0, 0, 1, 1, 0, 0, 0, 0, 0), (0, 0, 0, 1, 2, 0, 0, 0, 0, 0)
    for count in range(2, 6):
        case = comparing.draw_case(true, seen, (), count, rng)
        assert len(set(case.listed)) == len(set(case.called)) == count
        listed = case.listed[case.true]
        assert sum(a != b for a, b in zip(listed, true, strict=True)) <= 1, "one attribute may be misdescribed"
        assert f"{'ABCDE'[case.true]}. {case.called[case.true]}: {birds.describe(listed)}" in case.prompt
        assert case.reply == f"{birds.describe(seen)} Answer:"


def test_no_lesson_names_a_reserved_species(comparing) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        (species,) = comparing.strangers(1, rng)
        case = comparing.draw_case(species, species, (), 5, rng)
        assert not birds.reserved() & {case.said, *case.listed}
