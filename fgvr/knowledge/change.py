"""A base with one class more, or one less: what did not change is taken over as it is, so that removing what was added gives back the
former base, byte for byte. Only matrix rows; no models, no files."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fgvr.data.catalog import Catalog
from fgvr.data.splits import Split
from fgvr.errors import KnowledgeError
from fgvr.knowledge.base import KnowledgeBase, Origin, Support
from fgvr.knowledge.classes import ClassRecord
from fgvr.knowledge.prototypes import Prototypes, halves
from fgvr.knowledge.statistics import Statistics
from fgvr.types import Category, Sample
from fgvr.utils.files import short_hash

Recount = Callable[[Prototypes, Sequence[str]], Statistics]
"""System 1's leave-one-out statistics of these prototypes. Args: the prototypes, and the content hash of each support image."""


def catalog_of(base: KnowledgeBase) -> Catalog:
    """The classes of a base, to be found by any spelling."""
    return Catalog(tuple(Category(r.id, r.name, r.superclass, r.aliases) for r in base.classes))


def with_class(base: KnowledgeBase, added: KnowledgeBase, recount: Recount) -> KnowledgeBase:
    """`base` and the one class of `added`: a new class behind the others, or more images of a class that is there.

    A class keeps its description. Refuses (KnowledgeError) a part that other models made.
    """
    for role, fingerprint in added.origin.models.items():
        if base.origin.models.get(role) != fingerprint and (role == "encoder" or base.described):
            raise KnowledgeError(
                f"{base.path} was built with {base.origin.model(role)}, this configuration has {added.origin.model(role)}; "
                "use the models it was built with"
            )
    [record] = added.classes
    old, new = base.prototypes, added.prototypes
    known = record.id in base.records
    place = old.ids.index(record.id) if known else len(old.ids)
    owners = np.concatenate([old.owners, np.full(len(new.shots), place, np.int64)])
    order = np.argsort(owners, kind="stable")  # each class's images stay together
    families = _joined(old.families, new.families, len(old.shots), len(new.shots))[order]
    text, fold_text, name = old.text, old.fold_text, old.name
    if not known:
        text, fold_text = np.concatenate([text, new.text]), np.concatenate([fold_text, new.fold_text], axis=1)
        name = None if name is None or new.name is None else np.concatenate([name, new.name])
    more = replace(record, shots=base.records[record.id].shots + record.shots) if known else record
    prototypes = replace(
        old,
        ids=old.ids if known else (*old.ids, record.id),
        shots=np.concatenate([old.shots, new.shots])[order],
        owners=owners[order],
        families=_unless_all_differ(families),
        text=text,
        fold_text=fold_text,
        name=name,
    )
    records = [*(more if r.id == record.id else r for r in base.classes), *([] if known else [more])]
    support = [*base.support, *added.support]
    return _renewed(base, prototypes, records, [support[i] for i in order], recount)


def without_class(base: KnowledgeBase, id: str, recount: Recount) -> KnowledgeBase:
    """`base` without a class, its images, and the rules that speak of it. The last class is a KnowledgeError."""
    if len(base.classes) == 1:
        raise KnowledgeError(f"{base.records[id].name} is the only class of {base.path}, and a base needs one; add another first")
    old, place = base.prototypes, base.prototypes.ids.index(id)
    kept, classes = old.owners != place, np.arange(len(old.ids)) != place
    owners = old.owners[kept]
    prototypes = replace(
        old,
        ids=tuple(other for other in old.ids if other != id),
        shots=old.shots[kept],
        owners=owners - (owners > place),
        families=None if old.families is None else _unless_all_differ(old.families[kept]),
        text=old.text[classes],
        fold_text=old.fold_text[:, classes],
        name=None if old.name is None else old.name[classes],
    )
    support = [image for image in base.support if image.category != id]
    gone = {image.sha256 for image in base.support} - {image.sha256 for image in support}
    scores = {
        sha256: {category: value for category, value in nats.items() if category != id}
        for sha256, nats in base.slow_scores.scores.items()
        if sha256 not in gone
    }
    changed = replace(
        base,
        slow_scores=replace(base.slow_scores, scores=scores),
        experience=tuple(rule for rule in base.experience if id not in rule.pair and not gone & set(rule.sources)),
    )
    return _renewed(changed, prototypes, [record for record in base.classes if record.id != id], support, recount)


def _renewed(
    base: KnowledgeBase, prototypes: Prototypes, records: Sequence[ClassRecord], support: Sequence[Support], recount: Recount
) -> KnowledgeBase:
    prototypes = replace(prototypes, folds=halves(prototypes.owners.tolist(), prototypes.families))
    changed = replace(base, classes=tuple(records), prototypes=prototypes, support=tuple(support), path=None, manifest=None)
    statistics = recount(prototypes, [image.sha256 for image in support])
    return replace(changed, statistics=statistics, origin=_origin(changed))


def _origin(base: KnowledgeBase) -> Origin:
    """What a base of these images and classes says it is made from; the same content gives the same origin."""
    samples = tuple(Sample(image.key, image.key, image.category, image.sha256) for image in base.support)
    catalog = short_hash([(record.id, record.name, record.superclass) for record in base.classes])
    return replace(base.origin, split_hash=Split(samples, ()).split_hash, catalog=catalog)


def _joined(old: np.ndarray | None, new: np.ndarray | None, n: int, m: int) -> np.ndarray:
    """One number per image, the same for copies of each other; the old ones keep theirs."""
    first = np.arange(n) if old is None else old
    second = np.arange(m) if new is None else new
    return np.concatenate([first, second + first.max(initial=-1) + 1]).astype(np.int64)


def _unless_all_differ(families: np.ndarray) -> np.ndarray | None:
    return None if len(np.unique(families)) == len(families) else families
