from __future__ import annotations

import math

import numpy as np
import pytest

from fgvr.evaluation import routers
from scripts import birds_measure

rng = np.random.default_rng(3)


def simulate(n: int = 150, levels: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    score = rng.random(n)
    fast, slow = rng.random(n) < score, rng.random(n) < 0.85
    return fast, slow, score if levels is None else np.floor(score * levels)


def test_a_curve_is_what_escalating_one_by_one_gives():
    fast, slow, score = simulate()
    ours = routers.curve(fast, slow, score)
    order = np.argsort(score)
    for k in (0, 1, 17, 150):
        answers = fast.copy()
        answers[order[:k]] = slow[order[:k]]
        assert ours.at(k / 150) == pytest.approx(answers.mean())


def test_tied_images_are_escalated_in_random_order_on_average():
    fast, slow, score = simulate(levels=4)
    shuffled = [routers.curve(fast, slow, score + 1e-6 * rng.random(150)).accuracy for _ in range(3000)]
    assert routers.curve(fast, slow, score).accuracy == pytest.approx(np.mean(shuffled, 0), abs=0.004)


def test_a_score_that_says_nothing_is_the_random_router():
    fast, slow, _ = simulate()
    flat = routers.curve(fast, slow, np.zeros(150))
    assert flat.area == pytest.approx(routers.chance(fast, slow).area)
    assert routers.gap_share(fast, slow, np.zeros(150)) == pytest.approx(0, abs=1e-12)
    assert birds_measure.recovered(fast, slow, np.zeros(150), 0.6) == pytest.approx(0.6)


def test_no_order_beats_the_oracle_and_the_oracle_itself_fills_the_gap():
    fast, slow, _ = simulate(9)
    best = routers.oracle(fast, slow)
    for _ in range(200):
        assert (routers.curve(fast, slow, rng.random(9)).accuracy <= best.accuracy + 1e-12).all()
    assert routers.gap_share(fast, slow, fast.astype(int) - slow.astype(int)) == pytest.approx(1)


def test_the_oracle_stops_gaining_where_system_2_begins_to_break():
    best = routers.oracle(np.array([0, 0, 1, 1], bool), np.array([1, 0, 1, 0], bool))
    assert best.accuracy.tolist() == [0.5, 0.75, 0.75, 0.75, 0.5]
    assert best.rate.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_a_score_that_follows_being_right_lies_between_random_and_oracle():
    fast, slow, score = simulate(2000)
    assert 0 < routers.gap_share(fast, slow, score) < 1
    assert birds_measure.recovered(fast, slow, score, 0.6) > 0.6


def test_a_review_mends_every_image_that_it_looks_at():
    right, score = np.array([True, False, True, False]), np.array([0.9, 0.1, 0.2, 0.8])
    curves = routers.review_curves(right, score)
    assert [one.at(0.5) for one in curves] == [0.75, 0.75, 1.0]  # by this score, at random, by an oracle
    assert [one.at(1.0) for one in curves] == [1.0, 1.0, 1.0]


def test_nothing_to_gain_is_no_number():
    same = np.array([True, False])
    assert math.isnan(routers.gap_share(same, same, np.arange(2.0)))
    assert math.isnan(birds_measure.recovered(same, same, np.arange(2.0), 0.5))


def test_at_equal_budget_ours_lies_between_what_a_loop_finds_for_the_others():
    rng = np.random.default_rng(3)
    score = rng.random(400)
    fast, slow = rng.random(400) < score, rng.random(400) < 0.9
    escalated = score < 0.4
    found = routers.at_equal_budget(fast, slow, score, escalated)
    assert found.ours == pytest.approx(np.mean([s if e else f for f, s, e in zip(fast, slow, escalated, strict=True)]))
    sent = int(escalated.sum())
    best = sorted((int(s) - int(f) for f, s in zip(fast, slow, strict=True)), reverse=True)[:sent]
    assert found.oracle == pytest.approx(fast.mean() + sum(best) / 400)
    draws = [rng.permutation(400) < sent for _ in range(2000)]
    assert found.random == pytest.approx(np.mean([np.where(d, slow, fast).mean() for d in draws]), abs=0.003)
    assert found.never == fast.mean() < found.random < found.ours < found.oracle and found.always == slow.mean()
    assert routers.at_equal_budget(fast, fast, score, escalated).gap_share is None
