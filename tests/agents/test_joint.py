"""The matcher's second look at System 1's shortlist."""

from dataclasses import replace

import numpy as np
import pytest

from fgvr.agents.fusion import Fusion
from fgvr.agents.joint import Matcher, rescore
from fgvr.types import FastResult
from tests.agents.doubles import class_record, fast_result, picture


class TableJoint:
    """Matches by a table of (picture, words)."""

    fingerprint = "table"

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        self._table = table
        self.asked: list[tuple[str, str]] = []

    def match(self, images, texts):
        self.asked += [(image.sha256, text) for image, text in zip(images, texts, strict=True)]
        return np.array([self._table.get((image.sha256, text), 0.1) for image, text in zip(images, texts, strict=True)], np.float32)


def shares(result: FastResult) -> dict[str, float]:
    return {c.category: c.probability for c in result.candidates}


def test_as_a_third_opinion_the_matcher_is_mixed_in_with_its_weight() -> None:
    result = rescore(fast_result([0.6, 0.3, 0.1]), {"c0": 0.5, "c1": 0.9, "c2": 0.5}, fusion=Fusion(joint="score", joint_weight=0.5))
    odds = {"c0": 1.0, "c1": 9.0, "c2": 1.0}
    expected = {c: 0.5 * p + 0.5 * odds[c] / 11 for c, p in (("c0", 0.6), ("c1", 0.3), ("c2", 0.1))}
    assert shares(result) == pytest.approx(expected)
    assert result.top.category == "c1" and result.top.joint_score == pytest.approx(0.9)
    assert result.margin == pytest.approx(expected["c1"] - expected["c0"])
    assert sum(shares(result).values()) == pytest.approx(1.0)


def test_a_re_ranking_divides_the_first_ones_mass_anew_and_leaves_the_rest_behind_them() -> None:
    before = fast_result([0.5, 0.3, 0.15, 0.05])
    result = rescore(before, {"c0": 0.01, "c1": 0.99}, fusion=Fusion(joint="rerank", joint_top=2))
    assert [c.category for c in result.candidates] == ["c1", "c0", "c2", "c3"]  # c0 is less likely than c2 now, but was among the first
    assert shares(result)["c0"] + shares(result)["c1"] == pytest.approx(0.8)
    assert (shares(result)["c2"], shares(result)["c3"]) == pytest.approx((0.15, 0.05))
    assert result.candidates[2].joint_score is None


def test_a_class_without_words_keeps_its_share() -> None:
    joint = TableJoint({("x", "plain"): 0.9})
    classes = {c.id: c for c in (class_record("c0", ""), class_record("c1"), class_record("c2"))}
    (result,) = Matcher(joint, classes, fusion=Fusion(joint="score"))([picture("x")], [fast_result([0.6, 0.3, 0.1])])
    assert shares(result)["c0"] == pytest.approx(0.6)
    assert len(joint.asked) == 2


def test_only_the_first_k_are_asked_for_a_re_ranking() -> None:
    joint = TableJoint({})
    classes = {f"c{i}": class_record(f"c{i}", f"words {i}") for i in range(4)}
    Matcher(joint, classes, fusion=Fusion(joint="rerank", joint_top=2))([picture("x")], [fast_result([0.4, 0.3, 0.2, 0.1])])
    assert joint.asked == [("x", "words 0"), ("x", "words 1")]


def test_a_support_image_meets_its_own_class_only_in_words_that_never_saw_its_half() -> None:
    joint = TableJoint({})
    classes = {f"c{i}": class_record(f"c{i}", f"words {i}") for i in range(2)}
    Matcher(joint, classes, fusion=Fusion(joint="score"))([picture("x")], [fast_result([0.6, 0.4])], own=[("c1", 1)])
    assert joint.asked == [("x", "words 0"), ("x", "fold one")]


def test_a_certain_match_stays_finite() -> None:
    result = rescore(fast_result([0.6, 0.4]), {"c0": 0.0, "c1": 1.0}, fusion=Fusion(joint="score", joint_weight=1.0))
    assert np.isfinite(list(shares(result).values())).all() and np.isfinite(result.entropy)


def test_without_matches_nothing_changes() -> None:
    before = fast_result([0.6, 0.4])
    after = rescore(before, {}, fusion=Fusion(joint="score"))
    assert shares(after) == shares(before) and replace(after, agreement=before.agreement, confidence=0.0) == replace(before, confidence=0.0)
