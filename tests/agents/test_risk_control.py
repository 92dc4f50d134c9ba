"""The promises, tried on worlds whose true risk is known, and rules that look alike and break them."""

import numpy as np
import pytest
from scipy.stats import binom

import fgvr
from fgvr.agents.calibration import Calibrator, Deferred, Evidence
from fgvr.agents.risk_control import joint, ladder, least_accepted, most_errors, selective, upper_limit
from fgvr.agents.targets import Target
from fgvr.errors import ConfigError
from fgvr.types import FastResult
from scripts import risk_simulation
from scripts.risk_simulation import DELTA, MOST_VIOLATIONS, World
from tests.agents.doubles import fast_result


@pytest.mark.parametrize("n", [160, 400])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2])
def test_the_joint_promise_is_kept_and_useful(n: int, epsilon: float) -> None:
    world = World(1)
    broken = risk_simulation.kept_joint(n, epsilon)
    assert 20 < broken <= MOST_VIOLATIONS  # a rule that is never near its limit would waste fast answers
    assert joint(*world.draw(n), epsilon, DELTA).accepted > 0.2 * n


@pytest.mark.parametrize("n", [160, 400])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2])
def test_the_selective_promise_is_kept(n: int, epsilon: float) -> None:
    assert risk_simulation.kept_selective(n, epsilon) <= MOST_VIOLATIONS


def test_the_selective_promise_is_made_where_it_can_be() -> None:
    world = World(3)
    rungs = ladder(world.draw(160)[0], 400, 0.2, DELTA)
    assert np.mean([selective(*world.draw(400), 0.2, DELTA, rungs).certified for _ in range(200)]) > 0.5


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2])
def test_a_plug_in_threshold_breaks_the_promise(epsilon: float) -> None:
    assert risk_simulation.plug_in(160, epsilon) > 2 * MOST_VIOLATIONS


def test_a_class_history_that_counts_the_image_itself_breaks_the_promise() -> None:
    assert risk_simulation.own_history(0.1) > MOST_VIOLATIONS
    assert risk_simulation.own_history(0.1, own=False) <= MOST_VIOLATIONS  # the same history, judged on images it has not counted


def test_near_copies_in_the_support_break_what_leave_one_out_says() -> None:
    """Retrieval itself, with every second shot a copy: 300 draws, of which a kept promise breaks at most 43 (99 % binomial limit)."""
    limit = int(binom.ppf(0.99, 300, DELTA))
    assert risk_simulation.left_out(0.1, copies=True, draws=300) > limit
    assert risk_simulation.left_out(0.1, draws=300) <= limit


def test_the_limit_is_clopper_and_pearsons() -> None:
    assert upper_limit(0, 45, 0.1) == pytest.approx(1 - 0.1 ** (1 / 45))
    assert binom.cdf(10, 160, upper_limit(10, 160, 0.1)) == pytest.approx(0.1)
    assert upper_limit(3, 3, 0.1) == 1.0
    assert least_accepted(0, 0.05, 0.1) == 45
    assert most_errors(160, 0.1, 0.1) == 10
    assert most_errors(20, 0.05, 0.1) == -1


def test_ties_at_the_threshold_are_all_sent_to_system_2() -> None:
    scores = np.array([0.9] * 30 + [0.5] * 30 + [0.1] * 30)
    right = np.array([True] * 30 + [False] * 30 + [True] * 30)
    guarantee = joint(scores, right, 0.1, 0.1)
    assert (guarantee.accepted, guarantee.wrong) == (30, 0)
    assert guarantee.threshold > 0.5


def test_too_few_images_are_refused_with_the_number_needed() -> None:
    guarantee = joint(np.linspace(0, 1, 20), np.ones(20, bool), 0.05, 0.1)
    assert not guarantee.certified
    assert guarantee.threshold > 1
    assert str(guarantee).startswith("cannot promise epsilon=0.05 with n=20 (needs >= 45 error-free accepted)")


# --- through the trigger ------------------------------------------------------------------------------------------------------


def evidence(n: int, seed: int, competence: float = 1.0) -> Evidence:
    rng = np.random.default_rng(seed)
    top = rng.uniform(0.3, 0.99, n)
    results: list[FastResult] = [fast_result([p, (1 - p) * 0.7, (1 - p) * 0.3], sha256=f"{seed}-{i}") for i, p in enumerate(top)]
    return Evidence(results, list(rng.uniform(size=n) < top * competence))


GROUPS = [i % 4 for i in range(160)]


@pytest.mark.parametrize("form", ["joint", "selective"])
def test_a_risk_target_holds_on_new_images_even_when_the_support_flatters(form: str) -> None:
    """The support images say .99 where the truth is .8 of it; only the calibration images know."""
    trigger = Calibrator(target="risk:0.2@0.1", form=form).fit(evidence(160, 1, 1.0), GROUPS, evidence(400, 2, 0.95))
    new = evidence(4000, 3, 0.95)
    fast = np.array([not d.escalate for d in trigger(new.results)])
    wrong = ~np.asarray(new.right)
    assert fast.any()
    assert (fast & wrong).sum() / (len(fast) if form == "joint" else fast.sum()) <= 0.2
    assert "with probability 0.9 at most 0.2" in str(trigger.expectation)


def test_without_calibration_images_it_is_called_an_estimate() -> None:
    trigger = Calibrator(target="risk:0.2@0.1").fit(evidence(160, 1), GROUPS)
    assert str(trigger.expectation).endswith("(leave-one-out estimate, not a promise)")


def test_what_cannot_be_promised_goes_slow() -> None:
    trigger = Calibrator(target="risk:0.01@0.1").fit(evidence(160, 1), GROUPS, evidence(100, 2))
    assert all(d.escalate for d in trigger(evidence(50, 3).results))
    assert "cannot promise epsilon=0.01 with n=100" in str(trigger.expectation)


def test_a_deferred_trigger_is_fitted_once_when_first_asked() -> None:
    fits = []

    def fit():
        fits.append(1)
        return Calibrator(target="risk:0.2@0.1").fit(evidence(160, 1), GROUPS, evidence(160, 2))

    trigger = Deferred(fit)
    assert fits == []
    trigger(evidence(5, 3).results)
    assert trigger.expectation.n == 160
    assert fits == [1]


@pytest.mark.parametrize("text", ["risk", "risk:0", "risk:1@0.1", "risk:0.1@0", "risk:0.1@2"])
def test_a_risk_that_means_nothing_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"risk:0.1@0.1"):
        Target.parse(text)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="joint, selective"):
        fgvr.load_config("trigger.target=risk:0.1@0.1", "trigger.form=marginal")
