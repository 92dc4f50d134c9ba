"""Leave-one-out on the support images: System 1 against prototypes that never met them, System 2 on what it lists.

The statistics, the calibrated trigger and the pooling weight all learn from this and from nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents.fusion import Fusion, fuse
from fgvr.agents.slow import Decoder, Question, Shortlist, posterior
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.rehearsal import SlowRehearsal
from fgvr.knowledge.statistics import Statistics
from fgvr.types import FastResult, History, Picture


def rehearse_fast(prototypes: Prototypes, hashes: Sequence[str], *, fusion: Fusion) -> tuple[list[FastResult], Statistics]:
    """System 1 on every support image, leave-one-out; a result's history counts neither the image itself nor its copies."""
    met = prototypes.leave_one_out()
    nobody = (History(0, 0, 0),) * len(prototypes.ids)
    results = fuse(hashes, met, prototypes.ids, nobody, fusion=fusion, temperature=prototypes.temperature)
    position = {category: i for i, category in enumerate(prototypes.ids)}
    predicted = np.array([position[result.top.category] for result in results], np.int64)
    statistics = Statistics.count(prototypes.ids, prototypes.owners, predicted)
    histories = statistics.left_out(prototypes.owners, predicted, prototypes.families)
    return [replace(result, history=history) for result, history in zip(results, histories, strict=True)], statistics


def rehearse_slow(
    results: Sequence[FastResult],
    prototypes: Prototypes,
    pictures: Callable[[Sequence[int]], Sequence[Picture]],
    *,
    decoder: Decoder,
    shortlist: Shortlist,
    target: str,
    batches: Iterable[Sequence[int]],
) -> SlowRehearsal:
    """System 2 on the leave-one-out shortlists, one MLLM call per support image.

    Args:
        pictures: opens support images by index.
        batches: index batches with fixed borders, so that a resumed build repeats the same calls.
    """
    scores: dict[str, dict[str, float]] = {}
    for batch in batches:
        owners = [prototypes.ids[prototypes.owners[i]] for i in batch]
        shown = [shortlist(results[i], own=(owner, int(prototypes.folds[i]))) for i, owner in zip(batch, owners, strict=True)]
        judgements = decoder(pictures(batch), [Question(tuple(options)) for options in shown])
        for i, options, judged in zip(batch, shown, judgements, strict=True):
            nats = zip(options, judged.log_likelihoods, strict=True)
            scores[results[i].sha256] = {option.category: float(value) for option, value in nats if not np.isnan(value)}
    return SlowRehearsal(target, scores)


def pooling_cases(
    results: Sequence[FastResult], prototypes: Prototypes, rehearsal: SlowRehearsal
) -> list[tuple[FastResult, dict[str, float], str]]:
    """What `arbitrate.fit_weight` learns from: both systems' distributions and the truth, per rehearsed support image."""
    cases = []
    for result, owner in zip(results, prototypes.owners, strict=True):
        nats = rehearsal.scores.get(result.sha256, {})
        if nats:
            shares = posterior(np.array(list(nats.values())), np.ones(len(nats)))
            cases.append((result, dict(zip(nats, map(float, shares), strict=True)), prototypes.ids[owner]))
    return cases
