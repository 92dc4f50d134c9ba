"""Thresholds that keep a promise about risk: finite-sample, exact, and refused when the calibration images cannot carry it.

Two forms (algorithm.md 3), each holding with probability at least 1 - delta over the draw of the calibration images, for images drawn
like them: `joint`, at most epsilon of all images are answered fast and wrong; `selective`, of the images answered fast at most epsilon
are wrong. Both rest on the exact binomial limit of Clopper and Pearson (1934); `selective` on fixed-sequence testing as in Angelopoulos
et al., "Learn then Test" (arXiv 2110.01052). An image is answered fast iff its score reaches the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Form = Literal["joint", "selective"]
FORMS: tuple[Form, ...] = ("joint", "selective")
NOTHING = float(np.nextafter(1.0, 2.0))
"""A threshold that no probability reaches: every image goes slow."""
RUNGS = 20


@dataclass(frozen=True, slots=True)
class RiskGuarantee:
    """What was found on n calibration images. `kept` is False when nothing can be promised; the threshold is then NOTHING."""

    form: Form
    epsilon: float
    delta: float
    n: int
    threshold: float
    accepted: int  # calibration images at or above the threshold
    wrong: int  # of them wrong
    certified: bool
    final: bool = False  # about the answers given, whoever gave them; else about those of System 1 alone
    held_out: bool = True  # False: judged on leave-one-out support images, which the trigger has learned from

    @property
    def bound(self) -> float:
        """Exact upper limit of the risk at the threshold, at confidence 1 - delta."""
        return upper_limit(self.wrong, self.n if self.form == "joint" else self.accepted, self.delta)

    def __str__(self) -> str:
        kind = "" if self.held_out else " (leave-one-out estimate, not a promise)"
        if not self.certified:
            needed = least_accepted(0, self.epsilon, self.delta)
            then = "all answers are withheld" if self.final else "all go slow"
            return f"cannot promise epsilon={self.epsilon:g} with n={self.n} (needs >= {needed} error-free accepted): {then}{kind}"
        fast = "" if self.final else " fast"
        of = f"of all images are answered{fast} and wrong" if self.form == "joint" else f"of the images answered{fast} are wrong"
        seen = f"{self.wrong} wrong of {self.accepted}{fast or ' answered'} among n={self.n}, limit {self.bound:.3f}"
        return f"{self.form} risk: with probability {1 - self.delta:g} at most {self.epsilon:g} {of}; {seen}{kind}"


def joint(scores: np.ndarray, right: np.ndarray, epsilon: float, delta: float) -> RiskGuarantee:
    """The lowest threshold whose limit, and that of every stricter one, is at most epsilon.

    Fast-and-wrong images only become more as the threshold falls, so it must stop at the (k+1)-th best-scored wrong image, k being the most
    errors that n images may show.
    """
    scores, wrong = np.asarray(scores, float), ~np.asarray(right, bool)
    allowed = most_errors(len(scores), epsilon, delta)
    tempting = np.sort(scores[wrong])[::-1]
    if allowed < 0:
        threshold = NOTHING
    elif len(tempting) <= allowed:
        threshold = 0.0
    else:
        threshold = float(np.nextafter(tempting[allowed], np.inf))
    return _guarantee("joint", scores, wrong, epsilon, delta, threshold, certified=allowed >= 0)


def selective(scores: np.ndarray, right: np.ndarray, epsilon: float, delta: float, ladder: np.ndarray) -> RiskGuarantee:
    """Down a ladder of thresholds, chosen without these images, for as long as the limit among the accepted is at most epsilon.

    Each rung is an exact test at level delta, and the first failure ends them, so no correction for their number is needed. The ladder must
    not depend on the calibration images: with rungs at their own ranks the tests are no longer exact.
    """
    scores, wrong = np.asarray(scores, float), ~np.asarray(right, bool)
    reached = NOTHING
    for threshold in ladder:
        fast = scores >= threshold
        if upper_limit(int(wrong[fast].sum()), int(fast.sum()), delta) > epsilon:
            break
        reached = float(threshold)
    return _guarantee("selective", scores, wrong, epsilon, delta, reached, certified=reached < NOTHING)


def ladder(scores: np.ndarray, n: int, epsilon: float, delta: float) -> np.ndarray:
    """Thresholds from strict to lax at shares of other images' scores: from where n images could show one error, to all.

    Empty when even all n images with one error would not do.
    """
    first = least_accepted(1, epsilon, delta) / n if n else np.inf
    return np.quantile(scores, 1 - np.linspace(first, 1, RUNGS)) if first <= 1 else np.empty(0)


def upper_limit(wrong: int, n: int, delta: float) -> float:
    """Clopper-Pearson: the largest risk under which at most `wrong` errors in n images still have probability delta."""
    from scipy.special import betaincinv

    return 1.0 if wrong >= n else float(betaincinv(wrong + 1, n - wrong, 1 - delta))


@lru_cache
def most_errors(n: int, epsilon: float, delta: float) -> int:
    """The most errors n images may show with a limit of at most epsilon; -1 when not even none will do."""
    errors = -1
    while errors + 1 < n and upper_limit(errors + 1, n, delta) <= epsilon:
        errors += 1
    return errors


@lru_cache
def least_accepted(wrong: int, epsilon: float, delta: float) -> int:
    """The fewest images that may show so many errors with a limit of at most epsilon."""
    n = wrong + 1
    while upper_limit(wrong, n, delta) > epsilon:
        n += 1
    return n


def _guarantee(
    form: Form, scores: np.ndarray, wrong: np.ndarray, epsilon: float, delta: float, threshold: float, *, certified: bool
) -> RiskGuarantee:
    fast = scores >= threshold
    return RiskGuarantee(form, epsilon, delta, len(scores), threshold, int(fast.sum()), int(wrong[fast].sum()), certified)
