"""Comparing two candidates at a time."""

from __future__ import annotations

import pytest

from fgvr.agents.compare import CompareDecoder
from fgvr.agents.slow import ReasonDecoder, Shortlist, SlowThinking
from tests.agents.doubles import TableMLLM, class_record, fast_result, picture

RECORDS = {f"c{i}": class_record(f"c{i}", f"words {i}") for i in range(5)}


def thinking(mllm: TableMLLM, candidates: int) -> SlowThinking:
    decoder = CompareDecoder(ReasonDecoder(mllm, superclass="bird", max_new_tokens=60))
    return SlowThinking(decoder, Shortlist(RECORDS, candidates=candidates))


def test_the_best_so_far_meets_the_next() -> None:
    mllm = TableMLLM(lambda sha256, words: 2.0 if words.endswith("Answer: B") else 0.0, reply="A red crown. Answer: B")
    (answer,) = thinking(mllm, 3)([picture("a")], [fast_result([0.5, 0.3, 0.2])])
    first, second = dict.fromkeys(mllm.prompts)
    assert "A. name c0: words 0\nB. name c1: words 1\n" in first
    assert "A. name c1: words 1\nB. name c2: words 2\n" in second
    assert answer.category == "c2"
    assert answer.log_likelihoods == pytest.approx({"c0": 0.0, "c1": 2.0, "c2": 4.0})
    assert answer.rationale == "A name c1 or B name c2: A red crown."


def test_who_loses_stands_below_the_best_by_the_odds() -> None:
    mllm = TableMLLM(lambda sha256, words: 1.0 if words.endswith("Answer: A") else 0.0, reply="A red crown. Answer: A")
    (answer,) = thinking(mllm, 4)([picture("a")], [fast_result([0.4, 0.3, 0.2, 0.1])])
    assert answer.log_likelihoods == pytest.approx({"c0": 0.0, "c1": -1.0, "c2": -1.0, "c3": -1.0})


def test_one_candidate_needs_no_question() -> None:
    mllm = TableMLLM()
    (answer,) = thinking(mllm, 1)([picture("a")], [fast_result([0.5, 0.5])])
    assert answer.category == "c0" and not mllm.prompts
