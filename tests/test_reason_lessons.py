"""What the stages towards reasoning teach (`scripts/tiny`): lessons follow from their species, none is reserved."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from fgvr.data import birds

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("tiny.comparing")


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("tiny.differences")


def test_clauses_that_all_share_are_left_out(telling) -> None:
    told = ["A bird with red crown, hooked beak, no wing bars.", "A bird with red crown, long beak, no wing bars."]
    assert telling.differences(told) == ["hooked beak", "long beak"]
    assert telling.owners(told) == [("hooked beak", [0]), ("long beak", [1])]


def test_equal_descriptions_stay_whole_and_free_text_keeps_its_own(telling) -> None:
    assert telling.differences(["A bird with red crown."] * 2) == ["A bird with red crown."] * 2
    free = ["Small gull; grey back. Its legs are pink.", "Large gull; grey back. Its legs are yellow."]
    assert telling.differences(free) == ["Small gull, Its legs are pink", "Large gull, Its legs are yellow"]
    assert telling.owners(["Small gull; grey back.", "Large gull; white back."]) == []


def test_letters_follow_what_is_seen_and_the_answer_follows_the_truth(comparing) -> None:
    species = (0, 0, 0, 1, 1, 0, 0, 0, 0, 0)
    other = (0, 0, 0, 1, 2, 0, 0, 0, 0, 0)
    case = comparing.Case(species, (other, species), ("Foo", "Bar"), 1, ())
    assert "long beak: B" in case.prompt and "hooked beak: A" in case.prompt
    assert case.answer(species).text.endswith("Answer: B") and "long beak: B" in case.answer(species).text
    mistaken = case.answer(other)
    assert "hooked beak: A" in mistaken.text and mistaken.text.endswith("Answer: B")
    assert (" hooked", "wrong") in mistaken.reply


def test_no_lesson_names_a_reserved_species(comparing) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        (species,) = comparing.strangers(1, rng)
        case = comparing.draw_case(species, comparing.Level(5, 1, 0.5, 1.0, 0.5), rng)
        assert not birds.reserved() & {case.species, *case.listed}
        assert comparing.reflection(species, rng).text.count("Rule: Trust the") == 1
