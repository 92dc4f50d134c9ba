from dataclasses import replace

import numpy as np
import pytest

import fgvr
from fgvr.agents.calibration import FEATURES, Calibrator, Evidence, choose_threshold, fit, fit_logistic
from fgvr.agents.targets import Target
from fgvr.agents.trigger import Always, Gates, Never, Random, Sare, lower_bound
from fgvr.errors import ConfigError
from fgvr.session import Session
from fgvr.types import Candidate, History
from tests.agents.doubles import fast_result


def world(n=400, seed=0):
    """Results whose confidence says how likely they are right, with the truth drawn accordingly."""
    rng = np.random.default_rng(seed)
    top = rng.uniform(0.3, 0.99, n)
    results = [fast_result([p, (1 - p) * 0.7, (1 - p) * 0.3], sha256=str(i)) for i, p in enumerate(top)]
    return results, rng.uniform(size=n) < top


def candidate(category, probability, score, rank=1):
    return Candidate(category, probability, score, score, image_rank=rank, text_rank=rank)


def test_never_and_always_do_what_they_say():
    results, _ = world(5)
    assert not any(d.escalate for d in Never()(results))
    assert all(d.escalate for d in Always()(results))


def test_random_escalates_its_share_whatever_the_order_and_the_batches():
    results, _ = world(2000)
    trigger = Random(slow_rate=0.3, seed=1)
    whole = {r.sha256: d.escalate for r, d in zip(results, trigger(results), strict=True)}
    pieces = {r.sha256: trigger([r])[0].escalate for r in reversed(results)}
    assert whole == pieces
    assert np.mean(list(whole.values())) == pytest.approx(0.3, abs=0.04)
    assert whole != {r.sha256: d.escalate for r, d in zip(results, Random(slow_rate=0.3, seed=2)(results), strict=True)}


def test_the_published_rule_accepts_nothing_at_ten_shots_or_fewer():
    certain = fast_result([1.0, 0.0], history=History(10, 10, 400))
    for shots in (1, 2, 4, 10):
        assert Sare(eta=1.0, alpha=0.5, threshold=0.6, shots=shots)([certain])[0].escalate
    assert not Sare(eta=1.0, alpha=0.5, threshold=0.6, shots=1000)([certain])[0].escalate


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.45, 0.6, 1.0])
def test_calibrated_keeps_its_slow_rate_on_new_images(rate):
    results, right = world(2000)
    trigger = Calibrator(target=f"slow_rate:{rate}").fit(Evidence(results, right), [i % 4 for i in range(len(results))])
    fresh, _ = world(2000, seed=1)
    assert np.mean([d.escalate for d in trigger(fresh)]) == pytest.approx(rate, abs=0.06)
    assert trigger.expectation.slow_rate == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("target", ["slow_rate:0.5", "precision:0.9", "risk:0.1@0.1"])
def test_one_image_per_class_leaves_nothing_to_learn_from(target):
    """It was a threshold of NaN that escalated nothing and expected a slow rate of one."""
    results, right = world(40)
    with pytest.raises(ConfigError, match=r"one image per class.*dataset\.shots=2"):
        Calibrator(target=target).fit(Evidence(results, right), [0] * 40)


def test_a_promise_needs_only_its_calibration_images():
    results, right = world(400)
    guarantee = Calibrator(target="risk:0.5@0.1").fit(Evidence(results[:40], right[:40]), [0] * 40, Evidence(results, right)).expectation
    assert guarantee.certified and guarantee.held_out and guarantee.n == 400


def test_calibrated_escalates_the_doubtful_ones():
    results, right = world()
    trigger = Calibrator(target="slow_rate:0.5").fit(Evidence(results, right), [i % 4 for i in range(len(results))])
    fresh, truth = world(seed=2)
    escalated = np.array([d.escalate for d in trigger(fresh)])
    assert truth[~escalated].mean() > truth[escalated].mean() + 0.2


def test_calibrated_reaches_the_precision_it_is_asked_for():
    results, right = world(2000)
    trigger = Calibrator(target="precision:0.9").fit(Evidence(results, right), [i % 4 for i in range(len(results))])
    fresh, truth = world(2000, seed=3)
    fast = np.array([not d.escalate for d in trigger(fresh)])
    assert 0.1 < fast.mean() < 0.6
    assert truth[fast].mean() > 0.87


def test_a_decision_says_why_and_its_terms_add_up_to_its_score():
    results, right = world()
    trigger = Calibrator(target="slow_rate:0.5").fit(Evidence(results, right), [i % 4 for i in range(len(results))])
    decision = trigger(results[:1])[0]
    assert set(decision.terms) == {"base_rate", *FEATURES} - {"agreement"}, "what is the same for all has no weight and is not named"
    assert 1 / (1 + np.exp(-sum(decision.terms.values()))) == pytest.approx(decision.score)
    assert decision.escalate == (decision.score < decision.threshold)


@pytest.mark.parametrize("right", [True, False])
def test_a_support_set_without_errors_or_without_successes_can_be_learned_from(right):
    results, _ = world(40)
    trigger = Calibrator(target="slow_rate:0.5").fit(Evidence(results, [right] * 40), [i % 4 for i in range(40)])
    assert all(np.isfinite(d.score) for d in trigger(results))


def test_the_fit_recovers_known_weights():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20000, 2))
    outcome = rng.uniform(size=20000) < 1 / (1 + np.exp(-(0.5 + table @ [1.5, -1.0])))
    model = fit_logistic(table, outcome.astype(float))
    assert model.weights / model.scale == pytest.approx([1.5, -1.0], abs=0.08)


def test_the_fit_is_scikit_learns():
    """By chance, separable, without an error, with a feature that is always the same, and with far outliers."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    table = rng.normal(size=(160, 5)) * [3.0, 0.2, 1.0, 0.0, 0.3]
    table[:2, 4] = 1e6
    for outcomes in (rng.uniform(size=160) < 1 / (1 + np.exp(-table[:, 0])), table[:, 0] > 0, np.ones(160, bool), np.arange(160) < 3):
        found = fit_logistic(table, outcomes)
        rows = np.vstack([(table - found.mean) / found.scale, np.zeros((2, 5))])
        known = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12).fit(rows, [*outcomes, False, True])
        assert [found.intercept, *found.weights] == pytest.approx([*known.intercept_, *known.coef_[0]], abs=1e-8)


def test_a_class_without_a_failure_is_not_doubted_for_it() -> None:
    """Left out of its class's history, the image that failed sees the best one: 8 classes of 8, each with one failure."""
    rng = np.random.default_rng(0)
    right = np.tile([False, *[True] * 7], 8)
    history = np.where(right, 6 / 7, 7 / 7)
    confidence = rng.normal(size=64) + right
    table = np.column_stack([confidence, confidence, np.ones(64), history, -confidence])
    assert fit_logistic(table, right).weights[FEATURES.index("history")] < -1
    weights = fit(table, right).weights
    assert weights[FEATURES.index("history")] == 0 and weights[0] > 0
    known = np.where(right, 1.0, 0.5) + rng.normal(size=64)
    table[:, FEATURES.index("history")] = known
    assert (fit(table, right).weights == fit_logistic(table, right).weights).all() and fit(table, right).weights[3] > 0


def test_an_unreachable_precision_sends_everything_slow():
    assert choose_threshold(np.array([0.2, 0.9]), np.array([0.0, 0.0]), Target("precision", 0.9)) > 1


@pytest.mark.parametrize("text", ["slow_rate", "slow_rate:2", "slow_rate:often", "speed:0.5", "0.45", "precision:-1", "risk:x"])
def test_a_target_that_means_nothing_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"slow_rate:0.45|precision:0.45|risk:0.1@0.1"):
        Target.parse(text)


# --- the precursor's gates ------------------------------------------------------------------------------------------------------

PUBLISHED = {"certain": (0.75, 0.15), "agreed": 0.65, "overlap": 0.675, "bound": 0.65, "close": (0.7, 0.1), "temperature": 0.07}


def gates(**changed):
    return Gates(**{**PUBLISHED, "eta": 1.0, "alpha": 0.5, **changed})


UNKNOWN = History(0, 0, 400)


@pytest.mark.parametrize(
    ("result", "gate"),
    [
        (replace(fast_result([0.80, 0.10, 0.10], history=UNKNOWN), agreement=False), "certain"),
        (fast_result([0.72, 0.28], history=UNKNOWN), "close"),
        (fast_result([0.66, 0.34, *[0.0] * 8], history=History(400, 400, 400)), "bound"),
        (replace(fast_result([0.5, 0.5], history=UNKNOWN), candidates=(candidate("a", 0.5, 0.9), candidate("b", 0.5, 0.1))), "agreed"),
        (replace(fast_result([0.68], history=UNKNOWN), agreement=False, candidates=(candidate("a", 0.68, 0.5),)), "overlap"),
    ],
)  # fmt: skip
def test_each_gate_opens_by_itself_and_is_named(result, gate):
    decision = gates()([result])[0]
    assert not decision.escalate
    assert [name for name, slack in decision.terms.items() if slack >= 0] == [gate]


def test_who_passes_no_gate_goes_slow_and_the_score_says_by_how_much():
    near, far = gates()([fast_result([0.66, 0.34], history=UNKNOWN), fast_result([0.4, 0.35, 0.25], history=UNKNOWN)])
    assert near.escalate and far.escalate
    assert far.score < near.score < 0 == near.threshold


def test_the_lower_bound_rises_with_evidence_and_falls_with_ambiguity():
    few, many = History(4, 4, 100), History(64, 64, 100)
    sure, torn = [0.9, 0.1], [0.5, 0.5]
    assert lower_bound(fast_result(sure, history=many), eta=1, alpha=0.5) > lower_bound(fast_result(sure, history=few), eta=1, alpha=0.5)
    assert lower_bound(fast_result(sure, history=many), eta=1, alpha=0.5) > lower_bound(fast_result(torn, history=many), eta=1, alpha=0.5)
    assert lower_bound(fast_result([1.0], history=UNKNOWN), eta=1, alpha=0.5) == 0.0


def test_sare_at_its_published_threshold_accepts_nothing_at_four_shots_however_sure_system_1_is() -> None:
    """160 support images of 40 classes: the Hoeffding term alone is .80, so even p = 1 without any entropy stays below T = .6."""
    sure = [fast_result([1.0, 0.0], sha256=str(i), history=History(4, 4, 160)) for i in range(40)]
    policy = Session(fgvr.load_config("trigger=sare", "dataset.shots=4")).policy
    assert all(decision.escalate for decision in policy(sure))
