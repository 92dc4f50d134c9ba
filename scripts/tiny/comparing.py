"""What the stage `reason` teaches, as words: compare candidates in the context, follow rules, and make rules from mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fgvr.agents import prompts
from fgvr.data.birds import ATTRIBUTES, FINE, describe, phrase, reserved
from tiny import common
from tiny.differences import differences, owners
from tiny.world import CARDINALITIES

Species = tuple[int, ...]
LETTERS = "ABCDEFGH"
NAMES = tuple(ATTRIBUTES)
MISTAKES = np.array([0.01, 0.02, 0.02, 0.14, 0.1, 0.03, 0.03, 0.06, 0.02, 0.02])
"""How often an attribute is seen wrong in a lesson; about what the shipped model does."""


@dataclass(frozen=True, slots=True)
class Words:
    """A prompt, and the reply in parts: (text, kind). What is `seen` cannot be known without the picture, what is seen `wrong` not at all;
    `fits` are the letters of those whom it fits; all else is `said`."""

    prompt: str
    reply: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.reply)


@dataclass(frozen=True, slots=True)
class Level:
    """How hard a lesson is."""

    options: int
    strangers: int  # of the options
    rules: float = 0.0
    mistakes: float = 1.0  # factor on MISTAKES
    misdescribed: float = 0.0  # how often one attribute of the true candidate's line is wrong


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


def names(count: int, rng: np.random.Generator) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        if (name := common.random_name(rng)) not in found:
            found.append(name)
    return found


def spoken(place: int, value: int) -> str:
    return phrase(NAMES[place], ATTRIBUTES[NAMES[place]][value])


def rule_words(trusted: int, doubted: int) -> str:
    """The kind of rule that the model makes and follows. It names no class, since rules are kept with the pair they are about."""
    return f"Trust the {NAMES[trusted]} more than the {NAMES[doubted]}."


@dataclass(frozen=True, slots=True)
class Case:
    """A question with its truth: the species of the picture, and the candidates as they are listed."""

    species: Species
    listed: tuple[Species, ...]
    called: tuple[str, ...]
    true: int
    rules: tuple[tuple[int, int], ...]  # (attribute to trust, attribute to doubt)

    @property
    def shown(self) -> list[int]:
        """The attributes in which the candidates differ."""
        return [p for p in range(10) if len({o[p] for o in self.listed}) > 1]

    @property
    def prompt(self) -> str:
        """The multiple-choice question, with what tells the candidates apart clause by clause."""
        told = "; ".join(f"{clause}: {' '.join(LETTERS[i] for i in who)}" for clause, who in owners([describe(o) for o in self.listed]))
        called = [*self.called[:-1], f"{self.called[-1]}\nWhat tells them apart: {told}."]
        return prompts.choose("bird", called, [""] * len(called), [rule_words(*rule) for rule in self.rules], ending="reason")

    def answer(self, seen: Sequence[int]) -> Words:
        """All that is seen and, after what tells the candidates apart, whom it fits; then the true letter, whatever was seen."""
        reply: list[tuple[str, str]] = [("A bird with", "said")]
        for place, value in enumerate(seen):
            word, *rest = spoken(place, value).split()
            fits = [i for i, option in enumerate(self.listed) if option[place] == value] if place in self.shown else []
            reply += [("," if place else "", "said"), (f" {word}", "seen" if value == self.species[place] else "wrong")]
            reply += [("".join(f" {r}" for r in rest), "said")]
            reply += [(":", "said"), ("".join(f" {LETTERS[i]}" for i in fits), "fits")] if fits else []
        return Words(self.prompt, (*reply, (f". {prompts.ANSWER} {LETTERS[self.true]}", "said")))

    def mistaken(self, rng: np.random.Generator, factor: float) -> list[int]:
        """What might be seen: now and then another candidate's value."""
        seen = list(self.species)
        for place in self.shown:
            others = sorted({o[place] for o in self.listed} - {seen[place]})
            if others and rng.random() < MISTAKES[place] * factor:
                seen[place] = others[int(rng.integers(len(others)))]
        return seen


def draw_case(species: Species, level: Level, rng: np.random.Generator) -> Case:
    near = relatives(species, level.options - 1 - level.strangers, rng)
    options = [species, *near, *strangers(level.strangers, rng)]
    order = rng.permutation(len(options))
    listed, called = [options[i] for i in order], names(len(options), rng)
    true = int(np.flatnonzero(order == 0)[0])
    if rng.random() < level.misdescribed:
        listed[true] = _misdescribed(species, rng)
    case = Case(species, tuple(listed), tuple(called), true, ())
    return replace(case, rules=(_rule(case, rng),)) if rng.random() < level.rules and len(case.shown) > 1 else case


def _rule(case: Case, rng: np.random.Generator) -> tuple[int, int]:
    """Mostly one that decides rightly where the two attributes disagree, now and then one of any two attributes."""
    sound = [p for p in case.shown if case.listed[case.true][p] == case.species[p]]
    unsound = [p for p in case.shown if p not in sound] or case.shown
    trusted, doubted = (some[int(rng.integers(len(some)))] for some in (sound or case.shown, unsound))
    if trusted != doubted and rng.random() < 0.85:
        return trusted, doubted
    first, second = rng.choice(10, 2, replace=False)
    return int(first), int(second)


def comparison(species: Species, level: Level, rng: np.random.Generator) -> Words:
    """Which of the candidates is this?"""
    case = draw_case(species, level, rng)
    return case.answer(case.mistaken(rng, level.mistakes))


def _misdescribed(species: Species, rng: np.random.Generator) -> Species:
    """One fine attribute said wrong."""
    while True:
        other, place = list(species), FINE[int(rng.integers(len(FINE)))]
        other[place] = (other[place] + int(rng.integers(1, 3))) % 3
        if tuple(other) not in reserved():
            return tuple(other)


def reflection(species: Species, rng: np.random.Generator) -> Words:
    """Why was it taken for the other? Say what is seen; trust what then fits the truth's words more than what fits the other's."""
    said, taken = _misdescribed(species, rng), list(relatives(species, 1, rng)[0])
    wrong = next(p for p in range(10) if said[p] != species[p])
    taken[wrong] = species[wrong]  # the other has in words what the picture shows
    fitting = [p for p in range(10) if said[p] == species[p] != taken[p]]
    if not fitting or tuple(taken) in reserved():
        return reflection(species, rng)
    true, other = names(2, rng)
    left = differences([describe(said), describe(taken)])
    reply: list[tuple[str, str]] = [(f"{describe(species)}\nRule: {rule_words(fitting[0], wrong)}\nPriority: high.", "seen")]
    return Words(prompts.reflect("bird", (true, left[0]), (other, left[1])), tuple(reply))
