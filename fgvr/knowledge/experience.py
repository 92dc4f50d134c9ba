"""The experience library at inference: it recalls the rules about the candidates at hand (docs/method.md, section 1)."""

from collections.abc import Collection, Iterable

from fgvr.types import Experience

_PRIORITY = {"high": 0, "medium": 1, "low": 2}


class Library:
    """Holds accepted rules only. A rule without evidence stays in the file, and System 2 never sees it."""

    def __init__(self, rules: Iterable[Experience], *, most: int) -> None:
        """Args: most: rules recalled per image."""
        accepted = [rule for rule in rules if rule.status == "accepted"]
        self.rules = tuple(sorted(accepted, key=lambda rule: (_PRIORITY[rule.priority], 1.0 if rule.p is None else rule.p, rule.id)))
        self._most = most

    def recall(self, candidates: Collection[str]) -> tuple[Experience, ...]:
        """The first rules about these candidates, by priority and then by evidence."""
        return tuple(rule for rule in self.rules if speaks_of(rule, candidates))[: self._most]


def speaks_of(rule: Experience, candidates: Collection[str]) -> bool:
    """Whether both classes of the rule's pair are among the candidates. A rule about the superclass always applies."""
    return set(rule.pair) <= set(candidates)
