"""The audit of a scorer: of a dataset's own wrong answers, how many would a text protocol call right?

Every ordered pair of two different classes is one wrong answer (the first class's name given for the second). A protocol by class id
accepts none. `scripts/audit_scorer.py` prints the table of class lists.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgvr.errors import ConfigError, DatasetError
from fgvr.evaluation import protocols
from fgvr.evaluation.protocols import Protocol, Sentences


def accepted_wrong(names: Sequence[str], chosen: Protocol) -> float:
    """Share of the ordered pairs (answer, truth) of two different classes that the protocol accepts."""
    if chosen.accepts is None:
        raise ConfigError(f"{chosen} calls no single name right or wrong, so there is nothing to audit")
    if len(names) < 2:
        raise DatasetError("an audit needs at least two classes")
    wrong = sum(chosen.accepts(answer, truth) for i, truth in enumerate(names) for j, answer in enumerate(names) if i != j)
    return wrong / (len(names) * (len(names) - 1))


def remarks(measure: Sequence[str], names: Sequence[str], sentences: Sentences | None) -> list[str]:
    """What a reader of these protocols' numbers must know about the protocols themselves."""
    chosen = [protocols.get(name) for name in measure]
    told = [
        f"{one} calls {accepted_wrong(names, one):.1%} of all wrong answers right (ordered pairs of the {len(names)} class names)"
        for one in chosen
        if one.accepts is not None and len(names) > 1
    ]
    encoded = [str(one) for one in chosen if one.encoder and sentences is not None]
    return told + ([f"{', '.join(encoded)}: names are compared by {sentences.name}"] if sentences is not None and encoded else [])
