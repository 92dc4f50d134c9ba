"""Tests of paired differences against chance, one at a time and many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 20_000
"""Sign patterns at most. Up to 14 values have fewer than that, and the test is then exact."""


def sign_flip_p(differences: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """One-sided p of a positive mean when each difference might as well have had the other sign (Fisher's randomisation test).

    Without values the result is 1.
    """
    from scipy.stats import permutation_test  # here, as its import takes half a second

    values = np.asarray(differences, float)
    values = np.pad(values, (0, max(0, 2 - len(values))))  # scipy wants two values, and a zero changes nothing
    rng = np.random.default_rng(seed)
    found = permutation_test(
        (values,), np.sum, permutation_type="samples", alternative="greater", n_resamples=RESAMPLES, batch=1000, vectorized=True, rng=rng
    )
    return float(found.pvalue)


def benjamini_hochberg(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected with a false discovery rate of at most `level` (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return (false_discovery_control(p_values) <= level).tolist() if len(p_values) else []
