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
HELPFUL = 0.85
"""How often a rule of a lesson is about the true candidate and another one, and names what decides between them."""
MISDESCRIBED = 0.2
"""Share of a ruled question's candidates that are described wrong in one attribute: rules are mostly about what is wrong each time."""
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
    """The question with some rules. Args: seen: how often each attribute is said right."""
    count = RULES[int(rng.integers(len(RULES)))]
    return replace(case, rules=tuple(rule(*_drawn(case, seen, rng)) for _ in range(count)))


def _drawn(case: Case, seen: Sequence[float], rng: np.random.Generator) -> tuple[int, int]:
    if rng.random() < HELPFUL:
        others = [o for i, o in enumerate(case.listed) if i != case.true and o != case.listed[case.true]]
        if others:
            return decisive(case.said, case.listed[case.true], others[int(rng.integers(len(others)))], seen)
    more, less = rng.choice(len(NAMES), size=2, replace=False)
    return int(more), int(less)


def decisive(said: Species, true: Species, other: Species, seen: Sequence[float]) -> tuple[int, int]:
    """The attribute that tells the two apart and is said right, and the one that deceives; the best and the worst seen of several."""
    differing = [i for i in range(len(NAMES)) if true[i] != other[i]]
    right = [i for i in differing if said[i] == true[i]]
    deceived = [i for i in differing if said[i] == other[i]]
    more = max(right or [i for i in range(len(NAMES)) if i not in deceived], key=seen.__getitem__)
    return more, min(deceived or [i for i in range(len(NAMES)) if i != more], key=seen.__getitem__)


def draw_mistake(true: Species, said: Species, siblings: Sequence[Species], seen: Sequence[float], rng: np.random.Generator) -> Mistake:
    """The one among some relatives that what is said fits best, so that the mistake is a likely one."""
    some = [*siblings, *relatives(true, 4, rng)]
    for place in (i for i in FINE if said[i] != true[i]):  # one that differs where the picture deceived, and elsewhere
        other = list(true)
        other[place] = said[place]
        if len(rest := [i for i in FINE if i != place]) and rng.random() < 0.8:
            at = rest[int(rng.integers(len(rest)))]
            other[at] = (other[at] + int(rng.integers(1, 3))) % 3
        some.append(tuple(other))
    fit = [sum(a == b for a, b in zip(said, other, strict=True)) + 0.5 * rng.random() for other in some]
    wrong = some[int(np.argmax(fit))]
    return Mistake(said, (true, wrong), names(2, rng), *decisive(said, true, wrong, seen))
