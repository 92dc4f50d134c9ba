from __future__ import annotations

import numpy as np
import pytest

from fgvr.evaluation import routers
from fgvr.evaluation.oracle_trigger import Oracle
from fgvr.evaluation.records import outcomes


@pytest.fixture
def always(run):
    return run(300, slow_rate=1.0)


def test_the_oracle_asks_system_2_only_where_that_mends_an_error(always, classes):
    redecided = [Oracle().redecide(p, classes) for p in always]
    seen = outcomes(redecided)
    assert seen.broken.sum() == 0
    assert seen.escalated.tolist() == seen.fixed.tolist()
    assert sum(p.cost.asked.mllm_calls for p in redecided) == seen.escalated.sum()


def test_the_oracle_reaches_the_top_of_the_oracle_curve_at_its_least_slow_rate(always, classes):
    thought = outcomes(always)
    seen = outcomes([Oracle().redecide(p, classes) for p in always])
    ceiling = routers.oracle(thought.fast_right, thought.right)
    assert seen.right.mean() == pytest.approx(ceiling.accuracy.max())
    assert seen.escalated.mean() == pytest.approx(ceiling.rate[np.argmax(ceiling.accuracy > ceiling.accuracy.max() - 1e-9)])


def test_an_image_without_a_label_is_left_to_system_1(always, classes):
    from dataclasses import replace

    assert Oracle().redecide(replace(always[0], label=None), classes).by == "fast"
