from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fgvr.evaluation import uncertainty

rng = np.random.default_rng(11)


def test_image_bootstrap_agrees_with_scipy():
    right = rng.random(500) < 0.7
    theirs = stats.bootstrap((right,), np.mean, n_resamples=4000, method="percentile", rng=1, vectorized=True).confidence_interval
    assert uncertainty.image_bootstrap(right, draws=4000) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_image_bootstrap_covers_the_truth_in_95_of_100_cases():
    rng, hits = np.random.default_rng(1), 0
    for case in range(400):
        low, high = uncertainty.image_bootstrap(rng.random(300) < 0.7, draws=500, seed=case)
        hits += low <= 0.7 <= high
    assert 0.93 <= hits / 400 <= 0.97


def test_a_bootstrap_is_seeded():
    values = rng.random(100)
    assert uncertainty.image_bootstrap(values) == uncertainty.image_bootstrap(values)
    assert uncertainty.image_bootstrap(values) != uncertainty.image_bootstrap(values, seed=1)


def test_a_large_set_is_resampled_in_blocks():
    low, high = uncertainty.image_bootstrap(np.arange(50_000) % 4 == 0, draws=200)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 * 0.75 / 50_000), rel=0.2)


def test_classes_that_fail_together_make_the_interval_over_classes_wider():
    labels = np.repeat(np.arange(40), 20).astype(str)
    right = rng.random(800) < np.repeat(rng.choice([0.2, 1.0], 40), 20)
    (a, b), (c, d) = uncertainty.image_bootstrap(right), uncertainty.class_bootstrap(right, labels)
    assert d - c > 2 * (b - a)


def test_the_interval_of_a_mean_of_classes_is_that_of_a_loop():
    rng = np.random.default_rng(3)
    labels, right = np.repeat(list("abcdef"), [2, 3, 5, 8, 13, 21]), rng.random(52) < 0.6
    (found,) = uncertainty.image_bootstraps([uncertainty.mean_of_classes(right, labels)], 52, draws=300)
    draws = np.random.default_rng(0).integers(0, 52, (300, 52))
    means = [np.mean([right[d][labels[d] == c].mean() for c in np.unique(labels[d])]) for d in draws]
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    by_class = np.array([right[labels == c].mean() for c in "abcdef"])
    assert uncertainty.class_bootstrap_of_class_means(right, labels) == uncertainty.image_bootstrap(by_class)


def test_class_bootstrap_over_classes_of_one_image_is_the_image_bootstrap():
    right = rng.random(60) < 0.6
    labels = np.array([f"{i:02d}" for i in range(60)])
    assert uncertainty.class_bootstrap(right, labels) == uncertainty.image_bootstrap(right)


def test_t_interval_is_students():
    means = rng.normal(0.7, 0.02, 5)
    expected = stats.t.interval(0.95, 4, means.mean(), stats.sem(means))
    assert uncertainty.t_interval(means) == pytest.approx(expected)
    assert uncertainty.t_interval(means[:1]) == (-math.inf, math.inf)


def test_mcnemar_is_the_exact_binomial_test_on_the_discordant_images():
    for n in (0, 1, 2, 9, 40, 400):
        a, b = rng.random(n) < 0.6, rng.random(n) < 0.7
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert uncertainty.mcnemar(a, b) == pytest.approx(expected)


def test_class_bootstrap_covers_the_mean_of_all_classes_in_95_of_100_cases():
    """Classes drawn from a population with mean .7; images of one class share its accuracy."""
    rng, hits = np.random.default_rng(1), 0
    for case in range(400):
        rates = rng.beta(7, 3, 60)
        right = rng.random(600) < np.repeat(rates, 10)
        low, high = uncertainty.class_bootstrap(right, np.repeat(np.arange(60), 10).astype(str), draws=500, seed=case)
        hits += low <= 0.7 <= high
    assert 0.93 <= hits / 400 <= 0.97
