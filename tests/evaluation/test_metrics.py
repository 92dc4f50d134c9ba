from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from fgvr.errors import ConfigError
from fgvr.evaluation import metrics, scoring_protocols
from fgvr.evaluation.records import outcomes, ranking

rng = np.random.default_rng(7)


def test_top_k_counts_places_from_one_and_zero_as_absent():
    assert metrics.top_k(np.array([1, 5, 6, 0]), 5) == 0.5
    assert metrics.top_k(np.array([1, 5, 6, 0]), 1) == 0.25


def test_macro_gives_a_rare_class_the_weight_of_a_common_one():
    labels = np.array(["a"] * 9 + ["b"])
    right = np.array([True] * 9 + [False])
    assert metrics.accuracy(right) == 0.9
    assert metrics.macro(labels, right) == 0.5
    assert [(s.category, s.n, s.right) for s in metrics.per_class(labels, right)] == [("a", 9, 9), ("b", 1, 0)]


def test_confusions_are_counted_as_a_dictionary_would():
    labels, answers = rng.integers(0, 4, 300).astype(str), rng.integers(0, 4, 300).astype(str)
    expected = Counter((a, b) for a, b in zip(labels.tolist(), answers.tolist(), strict=True) if a != b)
    found = metrics.confusions(labels, answers)
    assert {(c.truth, c.answer): c.count for c in found} == expected
    assert [c.count for c in found] == sorted(expected.values(), reverse=True)
    assert all(c.of == int((labels == c.truth).sum()) for c in found)


@pytest.mark.parametrize("levels", [3, 50, 10**6])  # many ties, some, none
def test_auroc_is_the_mann_whitney_statistic(levels: int):
    for _ in range(20):
        score, right = rng.integers(0, levels, 120), rng.random(120) < 0.4
        u = stats.mannwhitneyu(score[right], score[~right]).statistic
        assert metrics.auroc(score, right) == pytest.approx(u / (right.sum() * (~right).sum()))


def test_auroc_is_undefined_when_all_are_right():
    assert math.isnan(metrics.auroc(np.arange(3.0), np.ones(3, bool)))


def test_risk_coverage_answers_equally_confident_images_together():
    coverage, risk = metrics.risk_coverage(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert risk == pytest.approx([0.0, 1 / 3, 0.5])


def test_protocols_score_a_run_as_a_loop_over_predictions_does(run):
    predictions = run(240)
    scores = scoring_protocols.score(outcomes(predictions))
    assert scores["exact"] == pytest.approx(np.mean([p.correct for p in predictions]))
    assert scores["top5"] == pytest.approx(np.mean([p.label in ranking(p)[:5] for p in predictions]))
    by_class = [np.mean([p.correct for p in predictions if p.label == c]) for c in {p.label for p in predictions}]
    assert scores["macro"] == pytest.approx(np.mean(by_class))


def test_every_protocol_has_a_name_a_version_and_a_title():
    for name, known in scoring_protocols.PROTOCOLS.items():
        assert known.name == name and known.version >= 1 and known.title
        assert str(known) == f"{name} v{known.version}"


def test_an_unknown_protocol_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(ConfigError, match=r"did you mean exact.*cacc, exact, macro"):
        scoring_protocols.get("exat")
