from dataclasses import replace

import numpy as np
import pytest

from fgvr.agents.fusion import Fusion
from fgvr.agents.leave_one_out import leave_one_out_fast
from fgvr.knowledge.prototypes import Prototypes, halves, index_within_class, unit
from fgvr.knowledge.statistics import Statistics
from fgvr.types import History


def prototypes(classes=5, shots=4, width=6, seed=0):
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(classes), shots)
    centres = rng.normal(size=(classes, width))
    return Prototypes(
        ids=tuple(f"c{i}" for i in range(classes)),
        shots=unit(centres[owners] + 0.3 * rng.normal(size=(len(owners), width))),
        owners=owners,
        folds=halves(owners.tolist()),
        text=unit(rng.normal(size=(classes, width))),
        fold_text=unit(rng.normal(size=(2, classes, width))),
    )


def test_leave_one_out_in_closed_form_equals_removing_the_image():
    p = prototypes()
    met = p.leave_one_out()
    for i in range(len(p.shots)):
        keep = np.arange(len(p.shots)) != i
        without = Prototypes(p.ids, p.shots[keep], p.owners[keep], p.folds[keep], p.text, p.fold_text)
        assert met.image[i] == pytest.approx(without.compare(p.shots[i : i + 1]).image[0], abs=1e-5)


def test_a_support_image_never_meets_a_description_that_saw_it():
    p = prototypes()
    met = p.leave_one_out()
    for i, (owner, fold) in enumerate(zip(p.owners, p.folds, strict=True)):
        assert met.text[i, owner] == pytest.approx(p.shots[i] @ p.fold_text[fold, owner], abs=1e-6)
        others = [c for c in range(5) if c != owner]
        assert met.text[i, others] == pytest.approx(p.text[others] @ p.shots[i], abs=1e-6)


def test_a_single_shot_has_no_prototype_without_itself():
    met = prototypes(shots=1).leave_one_out()
    assert np.isnan(np.diagonal(met.image)).all()


def test_a_class_without_words_scores_nan_and_nothing_else_changes():
    p = prototypes()
    p.text[2] = 0
    met = p.compare(p.shots)
    assert np.isnan(met.text[:, 2]).all() and np.isfinite(np.delete(met.text, 2, axis=1)).all()


def test_image_prototypes_are_unit_means():
    p = prototypes()
    assert np.linalg.norm(p.image, axis=1) == pytest.approx(np.ones(5))
    assert p.image[3] == pytest.approx(unit(p.shots[p.owners == 3].mean(axis=0)))


def test_halves_alternate_within_each_class():
    assert halves([0, 0, 1, 0, 1]).tolist() == [0, 1, 0, 0, 1]


def test_statistics_count_precision_and_recall_apart():
    s = Statistics.count(("a", "b"), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert s.predicted.tolist() == [1, 3] and s.correct.tolist() == [1, 2] and s.occurred.tolist() == [2, 2]
    assert s.histories()[1].seen == 3 and s.histories()[1].total == 4


def test_a_left_out_image_does_not_count_in_its_own_history():
    p = prototypes()
    results, statistics = leave_one_out_fast(p, [str(i) for i in range(len(p.shots))], fusion=Fusion())
    for result, owner in zip(results, p.owners, strict=True):
        whole = statistics.histories()[p.ids.index(result.top.category)]
        assert result.history.seen == whole.seen - 1
        assert result.history.correct == whole.correct - (result.top.category == p.ids[owner])


# --- copies ------------------------------------------------------------------------------------------------------------------


def test_copies_are_left_out_together() -> None:
    p = prototypes()
    families = np.arange(len(p.shots))
    families[[1, 2]] = 0  # three of the first class's four images are one picture
    met = replace(p, families=families).leave_one_out()
    alone = np.array([False, False, False, True])
    for i in range(3):
        without = Prototypes(p.ids, p.shots[:4][alone], p.owners[:4][alone], p.folds[:4][alone], p.text, p.fold_text)
        assert met.image[i, 0] == pytest.approx(without.compare(p.shots[i : i + 1]).image[0, 0], abs=1e-5)
    assert np.array_equal(met.image[3:], p.leave_one_out().image[3:]), "the others as before, to the bit"


def test_a_class_of_copies_alone_has_no_prototype_without_them() -> None:
    p = prototypes()
    assert np.isnan(replace(p, families=p.owners).leave_one_out().image[np.arange(20), p.owners]).all()


def test_copies_go_into_one_half_and_one_group() -> None:
    owners, families = [0, 0, 0, 1, 1], np.array([0, 0, 2, 3, 4])
    assert index_within_class(owners, families) == [0, 0, 1, 0, 1]
    assert halves(owners, families).tolist() == [0, 0, 1, 0, 1]
    assert index_within_class(owners) == [0, 1, 2, 0, 1]


def test_a_history_counts_neither_an_image_nor_its_copies() -> None:
    truth, predicted, families = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0]), np.array([7, 7, 7, 3])
    counted = Statistics.count(("a", "b"), truth, predicted)
    assert counted.left_out(truth, predicted) == [History(2, 1, 3), History(2, 1, 3), History(0, 0, 3), History(2, 2, 3)]
    assert counted.left_out(truth, predicted, families) == [History(1, 0, 1), History(1, 0, 1), History(0, 0, 1), History(2, 2, 3)]
