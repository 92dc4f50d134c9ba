"""What the stage `compare` teaches of rules, as words: questions with rules, and how a rule is stated after a mistake.

A rule says at what to look rather than at what. One that helps names an attribute that tells two candidates apart and is seen right, and
one that is not. Some of a lesson's rules name any two attributes: System 2 is shown rules that were tried, so most deserve trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fgvr.agents import prompts
from fgvr.data.birds import ATTRIBUTES, FINE, describe
from tiny.comparing import Case, Species, names, relatives

NAMES = tuple(ATTRIBUTES)
HELPFUL = 0.6
"""How often a rule of a lesson warns of what is described wrong; the others are as drawn from one misread picture."""
WRONG = (1, 1, 2)
"""Candidates of a ruled question that are described wrong in one attribute, each as likely: rules can mend what is wrong each time."""
RULES = (1, 1, 2, 3)
"""Rules of a question that has some, each as likely."""


def rule(more: int, less: int) -> str:
    """Args: attributes by place."""
    return f"look at the {NAMES[more]} rather than the {NAMES[less]}."


def lines(more: int, less: int) -> tuple[str, ...]:
    """The four lines in which a rule is stated."""
    return (f"Rule: {rule(more, less)}", "When: the candidates are similar.", "Cause: similar markings.", "Priority: high.")


@dataclass(frozen=True, slots=True)
class Mistake:
    """A picture of the first candidate that was taken for the second: what is said of it, and the attributes of the rule."""

    said: Species
    listed: tuple[Species, Species]
    called: tuple[str, ...]
    more: int
    less: int

    @property
    def prompt(self) -> str:
        (truth, wrong), (first, second) = self.called, (describe(o) for o in self.listed)
        return prompts.reflect("bird", (truth, first), (wrong, second))


def with_rules(case: Case, seen: Sequence[float], rng: np.random.Generator) -> Case:
    """The question with some candidates described wrong, and with rules. Args: seen: how often each attribute is said right."""
    listed, wrong = list(case.listed), dict[int, tuple[int, int]]()
    for _ in range(WRONG[int(rng.integers(len(WRONG)))]):
        one, other = (int(i) for i in rng.choice(len(listed), size=2, replace=False))
        alike = [place for place in FINE if case.listed[one][place] == case.listed[other][place]]
        if alike and one not in wrong:
            place = alike[int(rng.integers(len(alike)))]
            listed[one], wrong[one] = changed(listed[one], place, rng), (other, place)
    rules = (_drawn(listed, wrong, seen, rng) for _ in range(RULES[int(rng.integers(len(RULES)))]))
    return replace(case, listed=tuple(listed), rules=tuple(rule(*one) for one in rules))


def _drawn(
    listed: Sequence[Species], wrong: dict[int, tuple[int, int]], seen: Sequence[float], rng: np.random.Generator
) -> tuple[int, int]:
    """The attributes of a rule as some reflection would state it: about what is described wrong, or about what was misread once."""
    one, other = (int(i) for i in rng.choice(len(listed), size=2, replace=False))
    deceived = -1
    if wrong and rng.random() < HELPFUL:
        one = sorted(wrong)[int(rng.integers(len(wrong)))]
        other, deceived = wrong[one]
    differing = [i for i in range(len(NAMES)) if listed[one][i] != listed[other][i]]
    if deceived < 0:
        some = differing if differing else [*FINE]
        odds = np.array([1.02 - seen[i] for i in some])
        deceived = int(rng.choice(some, p=odds / odds.sum()))
    others = [i for i in differing if i != deceived] or [i for i in range(len(NAMES)) if i != deceived]
    return max(others, key=lambda i: seen[i] + 0.05 * rng.random()), deceived


def changed(species: Species, place: int, rng: np.random.Generator) -> Species:
    """With another value of a fine attribute."""
    values = list(species)
    values[place] = (values[place] + int(rng.integers(1, 3))) % 3
    return tuple(values)


def decisive(said: Species, true: Species, other: Species, seen: Sequence[float]) -> tuple[int, int]:
    """The attribute that tells the two apart and is said right, and the one that deceives; the best and the worst seen of several."""
    differing = [i for i in range(len(NAMES)) if true[i] != other[i]]
    right = [i for i in differing if said[i] == true[i]]
    deceived = [i for i in differing if said[i] == other[i]]
    more = max(right or [i for i in range(len(NAMES)) if i not in deceived], key=seen.__getitem__)
    return more, min(deceived or [i for i in range(len(NAMES)) if i != more], key=seen.__getitem__)


def draw_mistake(true: Species, said: Species, siblings: Sequence[Species], seen: Sequence[float], rng: np.random.Generator) -> Mistake:
    """The one among some relatives that what is said fits best, so that the mistake is a likely one. Most of the true species are
    described wrong in what both share, and that is what deceived."""
    some = [*siblings, *relatives(true, 4, rng)]
    misread = [i for i in FINE if said[i] != true[i]]
    if not misread or rng.random() < 0.25:
        wrong = max(some, key=lambda o: _fit(said, o) + 0.5 * rng.random())
        shared = [i for i in FINE if true[i] == wrong[i] == said[i]]
        if shared:
            place = shared[int(rng.integers(len(shared)))]
            described = changed(true, place, rng)
            return Mistake(said, (described, wrong), names(2, rng), decisive(said, described, wrong, seen)[0], place)
    for place in misread:  # one that differs where the picture deceived, and elsewhere
        other = list(true)
        other[place] = said[place]
        if len(rest := [i for i in FINE if i != place]) and rng.random() < 0.8:
            at = rest[int(rng.integers(len(rest)))]
            other[at] = (other[at] + int(rng.integers(1, 3))) % 3
        some.append(tuple(other))
    wrong = max(some, key=lambda o: _fit(said, o) + 0.5 * rng.random())
    return Mistake(said, (true, wrong), names(2, rng), *decisive(said, true, wrong, seen))


def _fit(said: Species, other: Species) -> int:
    return sum(a == b for a, b in zip(said, other, strict=True))
