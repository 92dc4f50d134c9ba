"""Promises about risk tried where the true risk is known: simulated draws of calibration images, and rules that must break the promise.

Each rule chooses a threshold from n drawn images; a draw is a violation when the true risk at that threshold exceeds epsilon. A kept
promise is violated in at most a share delta of draws: of 2,000 at delta .1 at most 232 (99 % binomial limit). `plug_in`, `own_history` and
`near_copies` look alike and are not kept; they show that the test can fail. `left_out` is what leave-one-out on the support images does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgvr.agents.risk_control import NOTHING, joint, ladder, selective
from fgvr.knowledge.prototypes import Prototypes, halves, unit

DRAWS, DELTA, MOST_VIOLATIONS = 2000, 0.1, 232


class World:
    """Scores uniform on [0, 1]; an image scored s is right with probability .3 + .69 s^.7. Risks by exact integration."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.grid = np.linspace(0, 1, 100_001)
        self.below = np.append(np.cumsum((1 - self.competence(self.grid))[::-1])[::-1] / len(self.grid), 0.0)

    @staticmethod
    def competence(scores: np.ndarray) -> np.ndarray:
        return 0.3 + 0.69 * scores**0.7

    def draw(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        scores = self.rng.random(n)
        return scores, self.rng.random(n) < self.competence(scores)

    def joint_risk(self, threshold: float) -> float:
        return float(self.below[np.searchsorted(self.grid, threshold)])

    def selective_risk(self, threshold: float) -> float:
        return self.joint_risk(threshold) / max(1 - threshold, 1e-9) if threshold < 1 else 0.0


def plug_in_threshold(scores: np.ndarray, right: np.ndarray, epsilon: float) -> float:
    """What many do: the lowest threshold whose observed risk is at most epsilon."""
    order = np.argsort(-scores)
    within = np.flatnonzero(np.cumsum(~right[order]) / len(scores) <= epsilon)
    return float(scores[order][within[-1]]) if len(within) else NOTHING


def violations(
    world: World,
    n: int,
    risk: Callable[[float], float],
    choose: Callable[[np.ndarray, np.ndarray], float],
    epsilon: float,
    *,
    draws: int = DRAWS,
) -> int:
    return sum(risk(choose(*world.draw(n))) > epsilon for _ in range(draws))


def kept_joint(n: int, epsilon: float, *, seed: int = 1) -> int:
    world = World(seed)
    return violations(world, n, world.joint_risk, lambda s, r: joint(s, r, epsilon, DELTA).threshold, epsilon)


def kept_selective(n: int, epsilon: float, *, seed: int = 2) -> int:
    world = World(seed)
    rungs = ladder(world.draw(160)[0], n, epsilon, DELTA)
    return violations(world, n, world.selective_risk, lambda s, r: selective(s, r, epsilon, DELTA, rungs).threshold, epsilon)


def plug_in(n: int, epsilon: float, *, seed: int = 4) -> int:
    world = World(seed)
    return violations(world, n, world.joint_risk, lambda s, r: plug_in_threshold(s, r, epsilon), epsilon)


def own_history(epsilon: float, *, seed: int = 5, own: bool = True, classes: int = 40, shots: int = 4, draws: int = DRAWS) -> int:
    """The score is the class's record on its shots. With `own` the shots themselves are the calibration images, so that each record counts
    the image's own outcome; without, they are as many others."""
    rng, broken = np.random.default_rng(seed), 0
    for _ in range(draws):
        competence = rng.beta(4, 1, classes)
        right = rng.random((classes, shots)) < competence[:, None]
        record = right.sum(axis=1, keepdims=True)
        judged = right if own else rng.random((classes, shots)) < competence[:, None]
        scores = np.broadcast_to(record / shots, right.shape)
        threshold = joint(scores.ravel(), judged.ravel(), epsilon, DELTA).threshold
        # A new image is scored by the whole record.
        broken += float(np.mean((record[:, 0] / shots >= threshold) * (1 - competence))) > epsilon
    return broken


def left_out(epsilon: float, *, seed: int = 6, copies: bool = False, draws: int = DRAWS) -> int:
    """Leave-one-out retrieval on 40 classes of 4 shots in place of calibration images; true risk on 1,000 new images each.

    Args: copies: every second shot is a near-copy of the one before it, so that an image left out still meets itself.
    """
    rng, broken = np.random.default_rng(seed), 0
    classes, shots, width, spread = 40, 4, 16, 0.28
    owners = np.repeat(np.arange(classes), shots)
    for _ in range(draws):
        centres = unit(rng.normal(size=(classes, width)))

        def images(labels: np.ndarray, centres: np.ndarray = centres) -> np.ndarray:
            return unit(centres[labels] + spread * rng.normal(size=(len(labels), width)))

        support = images(owners)
        if copies:
            support[1::2] = unit(support[::2] + 0.02 * rng.normal(size=support[::2].shape))
        nothing = np.zeros((classes, width), np.float32)
        ids = tuple(map(str, range(classes)))
        known = Prototypes(ids, support, owners, halves(owners.tolist()), nothing, np.stack([nothing, nothing]))
        threshold = joint(*_answers(known.leave_one_out().image, owners), epsilon, DELTA).threshold
        labels = rng.integers(0, classes, 1000)
        scores, right = _answers(known.compare(images(labels)).image, labels)
        broken += float(np.mean((scores >= threshold) & ~right)) > epsilon
    return broken


def _answers(similarities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(score, right): the margin between the two nearest classes, as a number in [0, 1], and whether the nearest is true."""
    first = np.sort(similarities, axis=1)[:, -2:]
    return (first[:, 1] - first[:, 0]) / 2, similarities.argmax(axis=1) == labels
