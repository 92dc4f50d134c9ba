"""What tells candidates apart, in their own words: the clauses of their descriptions that not all of them share, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fgvr.utils.text import pieces

_LEAD = re.compile(r"(?:\S+\s+){1,5}?(?:with|has)\s+", re.IGNORECASE)


def differences(descriptions: Sequence[str]) -> list[str]:
    """Each description without what all say. A description stays whole where nothing is left of any of them."""
    told = [_clauses(text) for text in descriptions if text]
    if len(told) < 2:
        return list(descriptions)
    shared = set.intersection(*({_plain(clause) for clause in clauses} for clauses in told))
    lead = _common_lead([clauses[0] for clauses in told])
    left = [", ".join(c[lead * (i == 0) :] for i, c in enumerate(_clauses(text)) if _plain(c) not in shared) for text in descriptions]
    return left if any(left) else list(descriptions)


def owners(descriptions: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Each clause that not all candidates share, with the indices of those that have it; clauses of the same place stand together.

    Empty where no two candidates share any clause: free text is read better by candidate.
    """
    found: dict[str, tuple[int, str, list[int]]] = {}
    for i, text in enumerate(differences(descriptions)):
        whole = [_plain(clause) for clause in _clauses(descriptions[i])]
        for clause in _clauses(text) if text else ():
            plain = _plain(clause)
            place = next((at for at, other in enumerate(whole) if other.endswith(plain)), len(whole))
            found.setdefault(plain, (place, clause, []))[2].append(i)
    every = [_plain(clause) for text in descriptions if text for clause in _clauses(text)]
    if len(set(every)) == len(every):
        return []
    return [(clause, who) for _, clause, who in sorted(found.values(), key=lambda entry: (entry[0], entry[2][0]))]


def _clauses(text: str) -> list[str]:
    return [clause.rstrip(" .,;:") for clause in pieces(text, "clauses")]


def _plain(clause: str) -> str:
    return " ".join(clause.lower().split())


def _common_lead(firsts: Sequence[str]) -> int:
    """Length of the words up to `with` or `has` that all first clauses begin with (`A bird with`), 0 for none."""
    lead = _LEAD.match(firsts[0])
    return lead.end() if lead and all(first.startswith(lead[0]) for first in firsts) else 0
