"""The linear classifier on few shots: against solving from scratch, and what leaving out means."""

from __future__ import annotations

import numpy as np
import pytest

from fgvr.knowledge.linear import LinearClassifier, fit_discriminant, fit_scale, folds_of
from fgvr.knowledge.prototypes import Prototypes, unit


def world(classes: int = 5, shots: int = 6, width: int = 20, *, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Class means apart in a few directions, and a strong direction in which every class's images differ alike."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(classes, width))
    owners = np.repeat(np.arange(classes), shots)
    nuisance = random.normal(size=(len(owners), 1)) * 6 * np.eye(1, width)
    return unit(means[owners] + nuisance + noise * random.normal(size=(len(owners), width))), owners


def base(shots: np.ndarray, owners: np.ndarray, families: np.ndarray | None = None) -> Prototypes:
    classes, width = int(owners.max()) + 1, shots.shape[1]
    nothing = np.zeros((classes, width), np.float32)
    ids = tuple(map(str, range(classes)))
    return Prototypes(ids, shots, owners, np.zeros(len(owners), np.int64), nothing, np.stack([nothing] * 2), families=families)


@pytest.mark.parametrize("width", [8, 60])
def test_both_ways_of_solving_are_the_textbooks_discriminant(width: int) -> None:
    shots, owners = world(width=width)
    fitted = fit_discriminant(shots, owners, 5, 0.7)
    vectors = unit(shots - shots.mean(axis=0)).astype(np.float64)
    means = np.stack([vectors[owners == c].mean(axis=0) for c in range(5)])
    within = (vectors - means[owners]).T @ (vectors - means[owners]) / (len(shots) - 5)
    shrunk = 0.3 * within + 0.7 * np.trace(within) / width * np.eye(width)
    expected = vectors @ np.linalg.solve(shrunk, means.T) - 0.5 * np.einsum("cd,dc->c", means, np.linalg.solve(shrunk, means.T))
    assert fitted(shots) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_it_looks_past_a_direction_in_which_all_classes_differ_alike() -> None:
    shots, owners = world(shots=40)
    learn, tried = np.arange(200) % 40 < 20, np.arange(200) % 40 >= 20
    known = base(shots[learn], owners[learn])
    linear = LinearClassifier(known, shrinkage=0.5).compare(shots[tried]).image.argmax(axis=1)
    nearest = known.compare(shots[tried]).image.argmax(axis=1)
    assert (linear == owners[tried]).mean() > (nearest == owners[tried]).mean() + 0.1


def test_leaving_out_is_fitting_again_without_that_fold() -> None:
    shots, owners = world()
    classifier = LinearClassifier(base(shots, owners), shrinkage=0.8)
    folds, scores = folds_of(owners.tolist()), classifier.leave_one_out().image
    assert len(set(folds.tolist())) == 6 and all(len(set(folds[owners == c].tolist())) == 6 for c in range(5))
    without = fit_discriminant(shots[folds != 2], owners[folds != 2], 5, 0.8)(shots[folds == 2])
    ratio = scores[folds == 2] / without
    assert ratio == pytest.approx(np.full_like(ratio, ratio.flat[0]), rel=1e-4), "one scale for all"


def test_copies_are_left_out_together_and_an_image_never_meets_its_copy() -> None:
    shots, owners = world(noise=3.0)
    shots = np.concatenate([shots, shots])
    owners = np.concatenate([owners, owners])
    order = np.argsort(owners, kind="stable")
    shots, owners, families = shots[order], owners[order], np.tile(np.arange(30), 2)[order]
    folds = folds_of(owners.tolist(), families)
    assert all(len(set(folds[families == f].tolist())) == 1 for f in range(30))
    apart = (LinearClassifier(base(shots, owners, families), shrinkage=0.8).leave_one_out().image.argmax(axis=1) == owners).mean()
    naive = (LinearClassifier(base(shots, owners), shrinkage=0.8).leave_one_out().image.argmax(axis=1) == owners).mean()
    assert apart < naive


def test_one_image_per_class_is_the_nearest_one_and_cannot_be_left_out() -> None:
    shots, owners = world(shots=1)
    classifier = LinearClassifier(base(shots, owners), shrinkage=0.8)
    assert classifier.compare(shots).image.argmax(axis=1).tolist() == owners.tolist()
    left_out = classifier.leave_one_out().image
    assert np.isnan(left_out[np.arange(5), owners]).all(), "a class whose only image is left out is not known"


def test_the_scale_makes_left_out_probabilities_honest() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 6)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([random.choice(6, p=row) for row in shares])
    assert fit_scale(logits * 50, truth) == pytest.approx(1 / 50, rel=0.15)
    assert fit_scale(np.full((3, 2), np.nan), np.array([0, 1, 0])) == 1.0


def test_text_scores_pass_through() -> None:
    shots, owners = world()
    known = base(shots, owners)
    assert np.isnan(LinearClassifier(known, shrinkage=0.8).compare(shots[:3]).text).all()
