"""Shots are chosen by hash: the same on every machine, in whatever order images come."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvr.data.splits import Split, choose_shots
from fgvr.errors import DatasetError
from fgvr.types import Sample
from fgvr.utils.text import natural


def pool(classes=3, each=8):
    return {str(c): [Sample(Path(f"/d/{c}/{i}"), f"{c}/{i}", str(c), f"sha{c}-{i}") for i in range(each)] for c in range(classes)}


@given(shots=st.integers(1, 8), seed=st.integers(0, 10**6), shuffle=st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_anything(shots, seed, shuffle: random.Random):
    samples = pool()
    classes = list(samples)
    shuffle.shuffle(classes)
    mixed = {label: shuffle.sample(samples[label], 8) for label in classes}
    chosen = choose_shots(samples, shots, seed)
    assert chosen == choose_shots(mixed, shots, seed)
    assert [sum(s.label == label for s in chosen) for label in samples] == [shots] * 3
    assert len(set(chosen)) == 3 * shots


@given(seed=st.integers(0, 1000))
def test_fewer_shots_are_among_more(seed):
    assert set(choose_shots(pool(), 2, seed)) < set(choose_shots(pool(), 4, seed))


def test_another_seed_chooses_others_and_all_get_their_turn():
    draws = [choose_shots(pool(1), 2, seed) for seed in range(200)]
    counts = [sum(sample in draw for draw in draws) for sample in pool(1)["0"]]
    assert len(set(draws)) > 20 and all(25 < count < 80 for count in counts)


def test_an_image_that_is_added_changes_at_most_its_own_class():
    more = {**pool(), "1": [*pool()["1"], Sample(Path("/x"), "1/new", "1")]}
    before, after = choose_shots(pool(), 4, 0), choose_shots(more, 4, 0)
    assert len(set(before) & set(after)) >= 11


def test_classes_with_too_few_images_are_named():
    samples = {**pool(), "9": pool()["1"][:3], "10": []}
    with pytest.raises(DatasetError, match=r"dataset\.shots=4 needs 4 images of each class; too few: 9 \(3\), 10 \(0\)"):
        choose_shots(samples, 4, 0)


def split():
    samples = pool(2, 4)
    everything = [*samples["0"], *samples["1"]]
    return Split(tuple(everything[::2]), tuple(everything[1:6:2]), (everything[7],))


def test_the_hash_knows_roles_labels_and_contents_but_no_order():
    base = split()
    assert Split(base.support[::-1], base.test, base.calibration).split_hash == base.split_hash
    assert len(base.split_hash) == 12
    changed = [
        Split(base.support[1:], base.test, (*base.calibration, base.support[0])),
        Split((replace(base.support[0], label="1"), *base.support[1:]), base.test, base.calibration),
        Split((replace(base.support[0], sha256="other"), *base.support[1:]), base.test, base.calibration),
        Split((replace(base.support[0], key="other"), *base.support[1:]), base.test, base.calibration),
    ]
    assert len({s.split_hash for s in changed} | {base.split_hash}) == 5
    moved = Split((replace(base.support[0], image=Path("/elsewhere")), *base.support[1:]), base.test, base.calibration)
    assert moved.split_hash == base.split_hash


def test_one_image_has_one_role():
    sample = pool()["0"][0]
    with pytest.raises(DatasetError, match=r"0/0 is in the support and again in the test images"):
        Split((sample,), (sample,))


def test_numbers_sort_as_numbers():
    assert sorted(["10", "9", "a10", "a9", "", "a", "9b"], key=natural) == ["", "a", "a9", "a10", "9", "9b", "10"]
