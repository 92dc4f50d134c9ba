"""What the stage `compare` teaches, as words: a multiple-choice question, what the model itself says it sees, and the true letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgvr.agents import prompts
from fgvr.data.birds import FINE, describe, reserved
from tiny import common
from tiny.world import CARDINALITIES

Species = tuple[int, ...]
COUNTS = (2, 3, 4, 5, 5, 5, 5)
"""Candidates of a question, each as likely."""
STRANGERS = (0, 0, 0, 1, 2)
"""How many of them are of other genera, each as likely."""
MISDESCRIBED = 0.06
"""How often one attribute of a candidate's description is wrong; the shipped model's own descriptions have .011 of the attributes wrong."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question with its truth: what is said of the picture, and the candidates as they are listed."""

    said: Species
    listed: tuple[Species, ...]
    called: tuple[str, ...]
    true: int

    @property
    def prompt(self) -> str:
        return prompts.choose("bird", self.called, [describe(o) for o in self.listed], (), ending="reason")

    @property
    def reply(self) -> str:
        """The reply up to its letter."""
        return f"{describe(self.said)} {prompts.ANSWER}"


def draw_case(true: Species, said: Species, siblings: Sequence[Species], count: int, rng: np.random.Generator) -> Case:
    """The true species among its siblings of the training world, other near relatives, and strangers."""
    unlike = min(count - 1, STRANGERS[int(rng.integers(len(STRANGERS)))])
    near = [siblings[i] for i in rng.permutation(len(siblings))] if rng.random() < 0.7 else []
    near = [*near, *(r for r in relatives(true, count, rng) if r not in near)][: count - 1 - unlike]
    options = [true, *near, *strangers(unlike, rng)]
    order = rng.permutation(count)
    listed = tuple(misdescribed(options[i], rng) if rng.random() < MISDESCRIBED else options[i] for i in order)
    return Case(said, listed, names(count, rng), int(np.flatnonzero(order == 0)[0]))


def relatives(species: Species, count: int, rng: np.random.Generator) -> list[Species]:
    """Others of a genus: one or two fine attributes from the species; none of them is reserved."""
    found: list[Species] = []
    while len(found) < count:
        other = list(species)
        for place in rng.choice(FINE, size=int(rng.integers(1, 3)), replace=False):
            other[place] = (other[place] + int(rng.integers(1, 3))) % 3
        if (new := tuple(other)) not in found and new not in reserved():
            found.append(new)
    return found


def strangers(count: int, rng: np.random.Generator) -> list[Species]:
    found: list[Species] = []
    while len(found) < count:
        if (new := tuple(int(v) for v in rng.integers(CARDINALITIES))) not in reserved():
            found.append(new)
    return found


def misdescribed(species: Species, rng: np.random.Generator) -> Species:
    """One fine attribute said wrong."""
    while True:
        other, place = list(species), FINE[int(rng.integers(len(FINE)))]
        other[place] = (other[place] + int(rng.integers(1, 3))) % 3
        if (new := tuple(other)) not in reserved():
            return new


def names(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    found: list[str] = []
    while len(found) < count:
        if (name := common.random_name(rng)) not in found:
            found.append(name)
    return tuple(found)
