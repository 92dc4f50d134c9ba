"""The bird world: seeded, fine-grained, and never overlapping with what the shipped models were trained on."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from fgvr.data import birds

WORLD = birds.make_world(9000)


def _pixels(world: birds.World, species: int, index: int) -> np.ndarray:
    return np.asarray(birds.render(world, species, "test", index), np.float32)


def test_the_default_world_has_forty_species_in_genera_of_four_and_six() -> None:
    sizes = [sum(s.genus == g for s in WORLD.species) for g in range(8)]
    assert tuple(sizes) == birds.DEFAULT_GENERA
    assert len({s.attributes for s in WORLD.species}) == 40


def test_the_same_seed_gives_the_same_world_and_the_same_pixels() -> None:
    again = birds.make_world(9000)
    assert again == WORLD
    assert np.array_equal(_pixels(WORLD, 3, 5), _pixels(again, 3, 5))
    assert birds.make_world(9001).species != WORLD.species


def test_split_and_index_give_other_pictures_of_the_same_species() -> None:
    pictures = [birds.render(WORLD, 0, split, i).tobytes() for split in ("train", "test") for i in range(3)]
    assert len(set(pictures)) == 6


@pytest.mark.parametrize("seed", [9000, 9017, 1])
def test_species_of_a_genus_differ_in_one_or_two_fine_attributes_and_genera_in_at_least_four(seed: int) -> None:
    for a, b in itertools.combinations(birds.make_world(seed).species, 2):
        differing = {i for i, (x, y) in enumerate(zip(a.attributes, b.attributes, strict=True)) if x != y}
        if a.genus == b.genus:
            assert 1 <= len(differing) <= 2
            assert differing <= set(birds.FINE)
        else:
            assert len(differing) >= 4


def test_smaller_genera_are_part_of_the_default_world() -> None:
    small = birds.make_world(9000, genera=(2, 3))
    assert {s.attributes for s in small.species} <= {s.attributes for s in WORLD.species}


def test_every_reserved_species_and_its_neighbours_are_excluded_from_training() -> None:
    forbidden = birds.reserved()
    for seed in (9000, 9050, 9099):
        for species in birds.make_world(seed).species:
            assert species.attributes in forbidden
            for place, values in enumerate(birds.ATTRIBUTES.values()):
                changed = list(species.attributes)
                changed[place] = (changed[place] + 1) % len(values)
                assert tuple(changed) in forbidden
    assert 0.25 < len(forbidden) / 218_700 < 0.45


def test_the_reserved_set_is_made_in_seconds() -> None:
    birds.reserved.cache_clear()
    started = time.process_time()
    birds.reserved()
    assert time.process_time() - started < 6


def test_reserved_seeds_are_known_as_such() -> None:
    assert birds.is_reserved(9000)
    assert birds.is_reserved(9099)
    assert not birds.is_reserved(9100)
    assert birds.is_reserved(9000, (6, 2, 6))
    assert not birds.is_reserved(9000, (9, 9)), "larger genera are drawn otherwise, and were not left out of training"
    assert not birds.is_reserved(9000, (4,) * 9)


def test_names_are_unique_and_hold_no_attribute_word() -> None:
    words = {w for name, values in birds.ATTRIBUTES.items() for text in (name, *values) for w in text.split()}
    for seed in range(9000, 9010):
        names = [s.name for s in birds.make_world(seed).species]
        assert len(set(names)) == len(names)
        assert not [n for n in names if any(w in n.lower() for w in words)]


def test_a_description_names_all_ten_attributes_and_is_read_back() -> None:
    for species in WORLD.species:
        assert birds.read(species.describe()) == species.attributes
    assert birds.read("A bird with red crown and one wing bar.") == (1, None, None, None, None, 1, None, None, None, None)


def test_pictures_are_small_rgb() -> None:
    picture = birds.render(WORLD, 0, "train", 0)
    assert (picture.size, picture.mode) == ((112, 112), "RGB")


def test_nuisance_grows_with_difficulty() -> None:
    def spread(difficulty: float) -> float:
        world = birds.make_world(9000, difficulty=difficulty)
        return float(np.stack([_pixels(world, 0, i) for i in range(12)]).std(0).mean())

    clean, half, heavy = (spread(d) for d in (0.0, 0.5, 1.0))
    assert clean < half < heavy


def test_every_attribute_changes_the_picture() -> None:
    plain = birds.World(0, 0.0, WORLD.species)
    base = WORLD.species[0].attributes
    for place, values in enumerate(birds.ATTRIBUTES.values()):
        changed = list(base)
        changed[place] = (changed[place] + 1) % len(values)
        a, b = (np.asarray(birds.draw_bird(x, np.random.default_rng(7), plain.difficulty), int) for x in (base, changed))
        assert (np.abs(a - b).max(-1) > 40).sum() >= 12, list(birds.ATTRIBUTES)[place]


def test_pictures_of_different_birds_are_never_nearly_the_same() -> None:
    thumbnails = [np.asarray(birds.render(WORLD, s, "test", i).resize((8, 8)), float).ravel() for s in range(40) for i in range(3)]
    closest = min(np.abs(a - b).mean() for a, b in itertools.combinations(thumbnails, 2))
    assert closest > 4


def test_a_difficulty_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="difficulty"):
        birds.make_world(1, difficulty=1.5)


def test_a_genus_that_cannot_fit_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="at most 9"):
        birds.make_world(1, genera=(4, 40))
