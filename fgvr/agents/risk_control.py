"""Thresholds with a guarantee about risk: finite-sample, exact, and refused when there are too few calibration images.

Each guarantee holds with probability at least 1 - delta over the draw of the calibration images, for images drawn like them. The form
`joint` bounds the share of all images that are answered fast and wrong. The form `selective` bounds the share of wrong answers among the
images answered fast. Both use the exact binomial limit of Clopper and Pearson (1934). `selective` also uses fixed-sequence testing
(Angelopoulos et al., "Learn then Test", arXiv 2110.01052). An image is answered fast iff its score reaches the threshold.
docs/method.md, section 3, has the equations.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Form = Literal["joint", "selective"]
FORMS: tuple[Form, ...] = ("joint", "selective")
NOTHING = float(np.nextafter(1.0, 2.0))
"""A threshold that no probability reaches, so every image is escalated."""
RUNGS = 20


@dataclass(frozen=True, slots=True)
class RiskGuarantee:
    """What n calibration images allow to guarantee. The threshold is NOTHING where `certified` is False."""

    form: Form
    epsilon: float
    delta: float
    n: int
    threshold: float
    accepted: int  # calibration images at or above the threshold
    wrong: int  # of them wrong
    certified: bool
    final: bool = False  # about the answers given, whoever gave them; else about those of System 1 alone
    held_out: bool = True  # False: judged on leave-one-out support images, from which the trigger has learned

    @property
    def bound(self) -> float:
        """Exact upper limit of the risk at the threshold, at confidence 1 - delta."""
        return upper_limit(self.wrong, self.n if self.form == "joint" else self.accepted, self.delta)

    def __str__(self) -> str:
        kind = "" if self.held_out else " (leave-one-out estimate, not a promise)"
        if not self.certified:
            needed = least_accepted(0, self.epsilon, self.delta)
            then = "all answers are withheld" if self.final else "every image is doubted"
            return f"cannot promise epsilon={self.epsilon:g} with n={self.n} (needs >= {needed} error-free accepted): {then}{kind}"
        fast = "" if self.final else " fast"
        of = f"of all images are answered{fast} and wrong" if self.form == "joint" else f"of the images answered{fast} are wrong"
        seen = f"{self.wrong} wrong of {self.accepted}{fast or ' answered'} among n={self.n}, limit {self.bound:.3f}"
        return f"{self.form} risk: with probability {1 - self.delta:g} at most {self.epsilon:g} {of}; {seen}{kind}"


def joint(scores: np.ndarray, right: np.ndarray, epsilon: float, delta: float) -> RiskGuarantee:
    """The lowest threshold whose limit, and that of every stricter threshold, is at most epsilon.

    A lower threshold can only add images that are fast and wrong. So it stops above the (k+1)-th best-scored wrong image, where k is the
    number of errors that n images may show.
    """
    wrong = np.sort(scores[~np.asarray(right, bool)])[::-1]
    allowed = most_errors(len(scores), epsilon, delta)
    threshold = NOTHING if allowed < 0 else 0.0
    if 0 <= allowed < len(wrong):
        threshold = float(np.nextafter(wrong[allowed], np.inf))
    return _guarantee("joint", scores, right, epsilon, delta, threshold, certified=allowed >= 0)


def selective(scores: np.ndarray, right: np.ndarray, epsilon: float, delta: float, ladder: np.ndarray) -> RiskGuarantee:
    """The last threshold of the ladder before the limit among the accepted images first exceeds epsilon.

    Each rung is an exact test at level delta. The first failure ends the tests, so their number needs no correction. The ladder must not
    depend on these images: with rungs at their own ranks the tests would no longer be exact.
    """
    reached, wrong = NOTHING, ~np.asarray(right, bool)
    for threshold in ladder:
        fast = scores >= threshold
        if upper_limit(int(wrong[fast].sum()), int(fast.sum()), delta) > epsilon:
            break
        reached = float(threshold)
    return _guarantee("selective", scores, right, epsilon, delta, reached, certified=reached < NOTHING)


def ladder(scores: np.ndarray, n: int, epsilon: float, delta: float) -> np.ndarray:
    """Thresholds from strict to lax: quantiles of other images' scores, from where n images could show one error down to all.

    The ladder is empty when even all n images with one error would not do.
    """
    first = least_accepted(1, epsilon, delta) / n if n else np.inf
    return np.quantile(scores, 1 - np.linspace(first, 1, RUNGS)) if first <= 1 else np.empty(0)


def upper_limit(wrong: int, n: int, delta: float) -> float:
    """Clopper-Pearson: the largest risk under which at most `wrong` errors in n images still have probability delta."""
    from scipy.special import betaincinv

    return 1.0 if wrong >= n else float(betaincinv(wrong + 1, n - wrong, 1 - delta))


def certifiable(n: int, delta: float = 0.1) -> str:
    """For people, before anything is computed: what n calibration images can promise about all images."""
    few = n // 20
    return (
        f"{n} calibration images can certify risk:E@{delta:g} (joint) for E from {upper_limit(0, n, delta):.3f} up when none of them is "
        f"answered fast and wrong, from {upper_limit(few, n, delta):.3f} up when {few} are"
    )


@lru_cache
def most_errors(n: int, epsilon: float, delta: float) -> int:
    """The most errors that n images may show with a limit of at most epsilon; -1 when no errors at all are still too many."""
    return next((k - 1 for k in range(n) if upper_limit(k, n, delta) > epsilon), n - 1)


@lru_cache
def least_accepted(wrong: int, epsilon: float, delta: float) -> int:
    """The fewest images that may show so many errors with a limit of at most epsilon."""
    n = wrong + 1
    while upper_limit(wrong, n, delta) > epsilon:
        n += 1
    return n


def certify(form: Form, scores: np.ndarray, right: np.ndarray, others: np.ndarray, epsilon: float, delta: float) -> RiskGuarantee:
    """The threshold of either form. Args: others: scores of other images, from which the rungs of `selective` are chosen."""
    if form == "joint":
        return joint(scores, right, epsilon, delta)
    return selective(scores, right, epsilon, delta, ladder(others, len(scores), epsilon, delta))


def _guarantee(
    form: Form, scores: np.ndarray, right: np.ndarray, epsilon: float, delta: float, threshold: float, *, certified: bool
) -> RiskGuarantee:
    fast = scores >= threshold
    wrong = int((~np.asarray(right, bool)[fast]).sum())
    return RiskGuarantee(form, epsilon, delta, len(scores), threshold, int(fast.sum()), wrong, certified)
