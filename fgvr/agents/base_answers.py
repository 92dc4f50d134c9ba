"""What a knowledge base remembers of both systems: their leave-one-out answers on its support images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgvr.agents.fusion import Fusion
from fgvr.agents.leave_one_out import leave_one_out_fast, leave_one_out_slow
from fgvr.agents.slow import Decoder, Exemplars, Shortlist
from fgvr.knowledge.classes import ClassRecord
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.statistics import LeaveOneOutScores, Statistics
from fgvr.protocols import Each
from fgvr.types import Picture
from fgvr.utils.batches import batches


def answer_leave_one_out(
    prototypes: Prototypes,
    records: Sequence[ClassRecord],
    hashes: Sequence[str],
    pictures: Callable[[Sequence[int]], list[Picture]],
    *,
    decoder: Callable[[str], Decoder] | None,
    target: str,
    exemplars: bool,
    batch: int,
    each: Each = map,
) -> tuple[Statistics, LeaveOneOutScores]:
    """Always the default System 1 and its first five: a base must not depend on which job of a sweep happens to build it.

    Args: decoder: makes System 2's decoder for a superclass; None = only System 1 answers.
    """
    results, statistics = leave_one_out_fast(prototypes, hashes, fusion=Fusion())
    if decoder is None:
        return statistics, LeaveOneOutScores(target)
    exemplar = None
    if exemplars:
        exemplar = Exemplars(prototypes.ids, prototypes.owners.tolist(), prototypes.folds.tolist(), lambda i: pictures([i])[0])
    slow_scores = leave_one_out_slow(
        results,
        prototypes,
        pictures,
        decoder=decoder(records[0].superclass),
        shortlist=Shortlist({record.id: record for record in records}, candidates=5, exemplar=exemplar),
        target=target,
        batches=batches(len(hashes), batch),
        each=each,
    )
    return statistics, slow_scores
