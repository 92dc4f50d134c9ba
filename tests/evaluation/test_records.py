from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvr.errors import DatasetError, StoreError
from fgvr.evaluation import records
from fgvr.evaluation.records import Recorded, as_recorded, from_row, outcomes, ranking, read, to_line, to_row
from fgvr.types import Abstention, Candidate, Cost, Decision, FastResult, History, Prediction, SlowResult

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 6) + 0.0)
unbounded = numbers | st.sampled_from([math.inf, -math.inf])
ids = st.text(max_size=8)
counts = st.integers(0, 10**6)
ranks = st.none() | st.integers(1, 99)
shas = st.text("0123456789abcdef", min_size=64, max_size=64)
scores = st.none() | numbers
candidates = st.builds(Candidate, ids, numbers, scores, scores, scores, scores, ranks, ranks)
slows = st.builds(
    SlowResult,
    st.none() | ids,
    st.dictionaries(ids, numbers, max_size=4),
    st.text(max_size=30),
    st.lists(ids, max_size=3).map(tuple),
    st.sampled_from(["answered", "unreadable"]),
)
decisions = st.builds(Decision, st.booleans(), unbounded, unbounded, st.dictionaries(ids, numbers, max_size=3))


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    sha, category = draw(shas), draw(ids)
    shortlist = draw(st.lists(candidates, max_size=4).map(tuple))
    fast = FastResult(
        sha, shortlist, draw(numbers), draw(numbers), draw(numbers), draw(st.booleans()), History(*draw(st.tuples(counts, counts, counts)))
    )
    return Prediction(
        draw(st.text(max_size=20)), sha, draw(st.none() | ids), category, category, draw(numbers), draw(st.sampled_from(["fast", "slow"])),
        fast, draw(decisions), draw(st.none() | slows), draw(st.builds(Cost, counts, counts, counts, counts, numbers)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_a_prediction_survives_its_line_of_json(prediction):
    assert from_row(json.loads(to_line(prediction))) == prediction


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_a_line_is_one_line_and_writing_it_again_gives_the_same_bytes(prediction):
    line = to_line(prediction)
    assert line.count("\n") == 1 and line.isascii()
    assert to_line(from_row(json.loads(line))) == line


def test_the_keys_are_those_of_the_file_format_in_its_order(run):
    row = to_row(next(p for p in run() if p.slow))
    assert list(row) == ("image sha256 label prediction name confidence by unsure fast history decision slow abstention cost names".split())
    assert list(row["fast"]) == "candidates confidence margin entropy agreement".split()
    assert list(row["fast"]["candidates"][0]) == (
        "category probability image_score text_score name_score joint_score image_rank text_rank".split()
    )
    assert list(row["history"]) == "seen correct total".split()
    assert list(row["decision"]) == "escalate score threshold terms".split()
    assert list(row["slow"]) == "category probabilities rationale rules status log_likelihoods".split()
    assert list(row["cost"]) == "mllm_calls prompt_tokens new_tokens encoder_forwards seconds asked".split()
    assert to_row(next(p for p in run() if not p.slow))["slow"] is None


def test_verdicts_are_rounded_to_six_decimals_evidence_is_not_and_numpy_numbers_become_plain_ones(run):
    prediction = replace(run()[0], confidence=np.float32(1 / 3), cost=Cost(mllm_calls=np.int64(2), seconds=np.float64(-1e-9)))
    row = to_row(prediction)
    assert row["confidence"] == 0.333333 and type(row["confidence"]) is float
    assert type(row["cost"]["mllm_calls"]) is int
    assert str(row["cost"]["seconds"]) == "0.0"
    evidence = replace(prediction, fast=replace(prediction.fast, confidence=1 / 3))
    assert from_row(json.loads(to_line(evidence))).fast.confidence == 1 / 3


def test_an_infinite_threshold_is_strict_json_and_comes_back(run):
    prediction = replace(run()[0], decision=Decision(True, 0.5, math.inf))
    assert from_row(json.loads(to_line(prediction))).decision.threshold == math.inf


def test_names_come_from_the_class_list_when_it_is_given(run, classes, tmp_path: Path):
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(map(to_line, run(20))))
    assert [p.name for p in read(file, classes)] == [p.name for p in run(20)]
    assert [p.name for p in read(file)] == [p.name for p in run(20)], "a file brings its own"


def test_an_empty_file_holds_no_prediction(tmp_path: Path):
    file = tmp_path / "predictions.jsonl"
    file.write_text("")
    assert read(file) == []


def test_a_torn_line_is_named(run, tmp_path: Path):
    file = tmp_path / "predictions.jsonl"
    file.write_text(to_line(run(1)[0]) + '{"image": "b')
    with pytest.raises(StoreError, match=r"predictions\.jsonl, line 2"):
        read(file)


def test_a_final_ranking_starts_with_the_answer_then_what_system_2_weighed_then_the_shortlist(run):
    slow = next(p for p in run() if p.slow)
    shortlist = tuple(replace(slow.fast.top, category=c) for c in ("a", "b", "c", "d"))
    asked = replace(
        slow, category="c", by="slow", fast=replace(slow.fast, candidates=shortlist), slow=SlowResult("c", {"a": 0.1, "b": 0.2, "c": 0.7})
    )
    assert ranking(asked) == ["c", "b", "a", "d"]
    assert ranking(replace(asked, category="a", by="fast")) == ["a", "b", "c", "d"]  # recorded, but not used


def test_images_without_a_label_are_not_scored(run):
    some = [replace(run()[0], label=None), *run()[1:5]]
    assert len(outcomes(some)) == 4
    with pytest.raises(DatasetError, match="none of the images has a label"):
        outcomes(some[:1])


def test_fixed_and_broken_speak_of_images_sent_to_system_2_only(run):
    all_ = run(300)
    seen = outcomes(all_)
    fixed = [p for p in all_ if p.slow and p.fast.top.category != p.label and p.category == p.label]
    broken = [p for p in all_ if p.slow and p.fast.top.category == p.label and p.category != p.label]
    assert (seen.fixed.sum(), seen.broken.sum()) == (len(fixed), len(broken))
    assert len(fixed) > len(broken) > 0
    assert not (seen.fixed & ~seen.escalated).any()


def test_a_prediction_as_recorded_is_what_its_row_gives(run):
    some = run(60)
    odd = replace(
        some[0],
        confidence=0.12345678,
        decision=Decision(False, float("inf"), 0.3333333333, {"margin": -0.00000001}),
        cost=Cost(1, 2, 3, 4, 0.123456789, decode_wait=0.7),
        abstention=Abstention(True, 0.98765432101, float("-inf")),
    )
    for prediction in (*some, odd):
        assert as_recorded(prediction) == from_row(json.loads(json.dumps(to_row(prediction))), {prediction.category: prediction.name})
    assert as_recorded(odd) != odd


def test_what_was_just_made_is_not_read_again(run):
    rows = [to_row(prediction) for prediction in run()[:4]]
    made = [as_recorded(prediction) for prediction in run()[:4]]
    recorded = Recorded([{}, *rows[1:]], made={0: made[0], 2: made[2]})
    assert [p.image for p in recorded] == [p.image for p in made]
    assert recorded[0] is made[0] and recorded[2] is made[2], "the first row would not even have been one"


def test_the_first_recorded_predictions_stay_once_made_and_the_rest_is_made_anew(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "KEPT", 2)
    rows = [to_row(prediction) for prediction in run()[:4]]
    recorded = Recorded(rows)
    first, again = list(recorded), list(recorded)
    assert first == again == recorded[0:4] == [from_row(row) for row in rows]
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False, False]
    assert recorded[-4] is first[0]
