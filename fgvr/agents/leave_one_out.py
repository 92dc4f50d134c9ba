"""Leave-one-out answers on the support images: System 1 without the image itself, System 2 on the shortlist that follows.

The statistics, the calibrated trigger and the fusion weight are fitted on these answers only.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fgvr.agents.fusion import Fusion, classifier_of, fuse
from fgvr.agents.joint import Matcher
from fgvr.agents.slow import Decoder, Exemplars, Question, Shortlist, nats, posterior
from fgvr.knowledge.classes import ClassRecord
from fgvr.knowledge.prototypes import Prototypes
from fgvr.knowledge.statistics import LeaveOneOutScores, Statistics
from fgvr.protocols import Each
from fgvr.types import FastResult, History, Picture
from fgvr.utils.batches import batches
from fgvr.utils.lazy import Lazy

Answers = tuple[list[FastResult], Statistics]
"""A result per support image, whose history counts neither the image nor its copies, and the counts of all images."""
LeaveOneOutAnswers = Lazy[Answers]


def leave_one_out_fast(prototypes: Prototypes, hashes: Sequence[str], *, fusion: Fusion) -> Answers:
    """Retrieval on every support image."""
    none = (History(0, 0, 0),) * len(prototypes.ids)
    similarities = classifier_of(prototypes, fusion).leave_one_out()
    return _counted(fuse(hashes, similarities, prototypes.ids, none, fusion=fusion, temperature=prototypes.temperature), prototypes)


def leave_one_out_joint(
    results: Sequence[FastResult],
    prototypes: Prototypes,
    pictures: Callable[[Sequence[int]], list[Picture]],
    matcher: Matcher,
    *,
    batch_size: int,
    each: Each = map,
) -> Answers:
    """Retrieval's leave-one-out results, scored again by the matcher."""

    def match(batch: Sequence[int]) -> list[FastResult]:
        own = [(prototypes.ids[prototypes.owners[i]], int(prototypes.folds[i])) for i in batch]
        return matcher(pictures(batch), [results[i] for i in batch], own)

    return _counted([result for some in each(match, batches(len(results), batch_size)) for result in some], prototypes)


def _counted(results: Sequence[FastResult], prototypes: Prototypes) -> Answers:
    position = {category: i for i, category in enumerate(prototypes.ids)}
    predicted = np.array([position[result.top.category] for result in results], np.int64)
    statistics = Statistics.count(prototypes.ids, prototypes.owners, predicted)
    histories = statistics.left_out(prototypes.owners, predicted, prototypes.families)
    return [replace(result, history=history) for result, history in zip(results, histories, strict=True)], statistics


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
    """Always the default System 1 and its first five: a base must not depend on which job of a sweep happens to build it. System 2 is
    asked once per support image.

    Args: decoder: makes System 2's decoder for a superclass; None = only System 1 answers.
    """
    results, statistics = leave_one_out_fast(prototypes, hashes, fusion=Fusion())
    if decoder is None:
        return statistics, LeaveOneOutScores(target)
    decode, exemplar = decoder(records[0].superclass), None
    if exemplars:
        exemplar = Exemplars(prototypes.ids, prototypes.owners.tolist(), prototypes.folds.tolist(), lambda i: pictures([i])[0])
    shortlist = Shortlist({record.id: record for record in records}, candidates=5, exemplar=exemplar)

    def answer(batch: Sequence[int]) -> dict[str, dict[str, float]]:
        owners = [prototypes.ids[prototypes.owners[i]] for i in batch]
        shown = [shortlist(results[i], own=(owner, int(prototypes.folds[i]))) for i, owner in zip(batch, owners, strict=True)]
        judgements = decode(pictures(batch), [Question(tuple(options)) for options in shown])
        judged = zip(batch, shown, judgements, strict=True)
        return {results[i].sha256: nats(options, judgement.log_likelihoods) for i, options, judgement in judged}

    answered = each(answer, batches(len(hashes), batch))  # with fixed borders, so that a resumed build repeats the same calls
    return statistics, LeaveOneOutScores(target, {sha256: found for some in answered for sha256, found in some.items()})


def fusion_cases(
    results: Sequence[FastResult], prototypes: Prototypes, slow: LeaveOneOutScores
) -> list[tuple[FastResult, dict[str, float], str]]:
    """The cases for `fit_weight`: both systems' distributions and the true class, per support image that System 2 answered."""
    cases = []
    for result, owner in zip(results, prototypes.owners, strict=True):
        if scores := slow.scores.get(result.sha256, {}):
            shares = posterior(np.array(list(scores.values())), np.ones(len(scores)))
            cases.append((result, dict(zip(scores, shares.tolist(), strict=True)), prototypes.ids[owner]))
    return cases
