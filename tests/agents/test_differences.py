"""What tells candidates apart, of their descriptions."""

from __future__ import annotations

from fgvr.agents import prompts
from fgvr.agents.differences import differences


def test_clauses_that_all_share_are_left_out() -> None:
    told = ["A bird with red crown, hooked beak, no wing bars.", "A bird with red crown, long beak, no wing bars."]
    assert differences(told) == ["hooked beak", "long beak"]


def test_the_words_before_the_first_clause_go_when_all_begin_so() -> None:
    told = ["A bird with red crown, long beak.", "A bird with blue crown, long beak.", "A bird with red crown, short tail."]
    assert differences(told) == ["red crown, long beak", "blue crown, long beak", "red crown, short tail"]


def test_free_text_keeps_what_is_its_own() -> None:
    told = ["Small gull; grey back. Its legs are pink.", "Large gull; grey back. Its legs are yellow."]
    assert differences(told) == ["Small gull, Its legs are pink", "Large gull, Its legs are yellow"]


def test_equal_descriptions_stay_whole() -> None:
    assert differences(["A bird with red crown."] * 2) == ["A bird with red crown."] * 2


def test_a_candidate_without_words_stays_without() -> None:
    assert differences(["", "A red bird."]) == ["", "A red bird."]
    assert differences(["", "Red crown, long beak.", "Red crown, short beak."]) == ["", "long beak", "short beak"]


def test_a_question_states_what_tells_the_candidates_apart() -> None:
    told = ["A bird with red crown, hooked beak.", "A bird with red crown, long beak."]
    asked = prompts.choose("bird", ["Foo", "Bar"], told, ["look twice"], ending="reason")
    assert "A. Foo: hooked beak\nB. Bar: long beak\nRule: look twice\n" in asked
