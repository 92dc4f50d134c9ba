"""Is a dataset what it should be? Counts, files, class order, and images that stand in two roles; each fault with its cure."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fgvr.data.catalog import Listing, describe_missing_files, missing_files
from fgvr.data.datasets import Dataset
from fgvr.data.leaks import NEAR_MOST, by_content_alone, exact_overlaps, near_overlaps
from fgvr.data.near_duplicates import PerceptualHash
from fgvr.errors import FgvrError
from fgvr.store.cache import NoCache
from fgvr.types import Finding, Sample
from fgvr.utils.text import normalise_name, some

_SHOWN = 5


def diagnose(open_dataset: Callable[[], Dataset], hashes: PerceptualHash | None = None) -> Iterator[Finding]:
    """The findings on a dataset that may not even open; then the one finding is why, with its cure.

    Args: hashes: caches perceptual hashes from visit to visit; None: they are computed for this visit only.
    """
    try:
        dataset = open_dataset()
    except FgvrError as error:
        yield Finding("dataset", False, type(error).__name__, str(error))
        return
    except OSError as error:  # a home that cannot be written, for a dataset that is drawn there
        yield Finding(
            "dataset", False, f"{error.filename or 'a file'}: {error.strerror or error}", "set paths.home=FOLDER to a folder of yours"
        )
        return
    yield from dataset_findings(dataset, hashes)


def dataset_findings(dataset: Dataset, hashes: PerceptualHash | None = None) -> Iterator[Finding]:
    """What a person should know before trusting numbers on this dataset. Compares all images that were looked at, so it takes a while."""
    split = dataset.split
    yield Finding("dataset", bool(split.test), str(dataset), "" if split.test else "give it a test part, or lower dataset.shots")
    counts = Counter(sample.label for sample in split.test)
    untested = [category.name for category in dataset.catalog if category.id not in counts]
    yield Finding(
        "classes tested",
        not untested,
        f"{len(dataset.catalog) - len(untested)} of {len(dataset.catalog)}",
        f"no test image of: {some(untested, _SHOWN)}" if untested else "",
    )
    for note in () if dataset.listing is None else dataset.listing.notes:
        yield Finding("left aside", True, note)
    gone = [] if dataset.listing is None else missing_files(dataset.listing)
    absent = {sample.key for sample in gone}
    bad = [image for image in dataset.bad_images if image.key not in absent]
    yield Finding("readable", not bad, f"{len(bad)} unusable images", f"mend or delete {bad[0]}" if bad else "")
    if dataset.listing is not None:
        yield from _archive_findings(dataset, dataset.listing, gone)
    yield from _leaks(dataset, hashes or PerceptualHash(NoCache()))


def _archive_findings(dataset: Dataset, listing: Listing, gone: list[Sample]) -> Iterator[Finding]:
    listed = (*listing.pool, *listing.test)
    yield Finding(
        "files", not gone, f"{len(listed) - len(gone):,} of {len(listed):,} listed images are there", describe_missing_files(gone)
    )
    if dataset.figures is not None:
        yield _counted(dataset, listing)
    if listing.official_names:
        yield _class_order(listing)
    if listing.checksums:
        yield _checksums(dataset, listing.checksums)
    yield Finding(
        "looked at", True, f"{len(dataset.seen):,} of {len(listed):,} images were opened and hashed; split {dataset.split.split_hash}"
    )


# --- counts and files --------------------------------------------------------------------------------------------------------


def _counted(dataset: Dataset, listing: Listing) -> Finding:
    """The archive's lists against what its makers published."""
    figures = dataset.figures
    assert figures is not None
    train, test = Counter(s.label for s in listing.pool), Counter(s.label for s in listing.test)
    found = {"classes": len(listing.catalog), "images to learn from": len(listing.pool), "images to test": len(listing.test)}
    official = dict(zip(found, (figures.classes, figures.train, figures.test), strict=True))
    wrong = [f"{found[what]:,} {what} instead of {count:,}" for what, count in official.items() if found[what] != count]
    for counts, each, part in ((train, figures.train_each, "to learn from"), (test, figures.test_each, "to test")):
        odd = [c for c in listing.catalog if each is not None and counts[c.id] != each]
        if odd:
            wrong.append(f"{odd[0].name} has {counts[odd[0].id]} images {part} instead of {each} ({len(odd)} such classes)")
    cure = f"{'; '.join(wrong)}: it is a part, or another version; compare with {dataset.page}" if wrong else ""
    return Finding("official figures", not wrong, ", ".join(f"{count:,} {what}" for what, count in found.items()), cure)


def _checksums(dataset: Dataset, expected: Mapping[str, str]) -> Finding:
    """The makers' md5 of each image that was looked at."""
    looked = [sample for sample in dataset.seen if sample.key in expected]
    changed = [s.key for s in looked if hashlib.md5(Path(str(s.image)).read_bytes(), usedforsecurity=False).hexdigest() != expected[s.key]]
    cure = f"not the published bytes: {some(changed, _SHOWN)}; fetch them again or leave them out" if changed else ""
    return Finding("checksums", not changed, f"{len(looked) - len(changed):,} of {len(looked):,} are as published", cure)


# --- classes -----------------------------------------------------------------------------------------------------------------


def _class_order(listing: Listing) -> Finding:
    """Every class must stand at its official number under its official name: a swap scores one class as another."""
    ids = listing.catalog.ids
    expected = [id for id in listing.official_names if id in listing.catalog]
    wrong = (
        [] if list(ids) == expected else [f"class {a} stands where {b} should" for a, b in zip(ids, expected, strict=True) if a != b][:1]
    )
    for category in listing.catalog:
        own = listing.own_names.get(category.id, category.id)
        known = {normalise_name(name) for name in listing.official_names.get(category.id, ())}
        if own != category.id and normalise_name(own) not in known:
            wrong.append(f"class {category.id} is {category.name}, but the archive calls it {own}")
    cure = f"{'; '.join(wrong[:_SHOWN])}: the class list was changed or is of another version; extract it again" if wrong else ""
    return Finding("class order", not wrong, f"{len(ids)} classes" + ("" if wrong else ", official"), cure)


# --- leaks -------------------------------------------------------------------------------------------------------------------


def _leaks(dataset: Dataset, hashes: PerceptualHash) -> Iterator[Finding]:
    """The same image on both sides of the split that is used, on both sides of the whole archive, or in two classes."""
    split = dataset.split
    learnt = (*split.support, *split.calibration)
    yield from _apart("test apart from support", split.test, learnt, hashes)
    if dataset.listing is None:
        return
    if dataset.listing.official:
        tests = {sample.key for sample in dataset.listing.test}
        test, train = ([s for s in dataset.seen if (s.key in tests) == side] for side in (True, False))
        yield from _apart("train apart from test", test, train, hashes)
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for sample in dataset.seen:
        labels[sample.sha256].setdefault(str(sample.label), sample.key)
    twice = [" and ".join(keys.values()) for keys in labels.values() if len(keys) > 1]
    cure = f"the same image under two classes: {some(twice, _SHOWN)}; leave one out" if twice else ""
    yield Finding("one class per image", not twice, f"{len(twice)} images in two classes", cure)


def _apart(topic: str, tests: Sequence[Sample], learnt: Sequence[Sample], hashes: PerceptualHash) -> Iterator[Finding]:
    """What the leak guard of an evaluation would refuse: exact copies and near duplicates."""
    where = {sample.sha256: sample.key for sample in learnt}
    exact = [str(overlap) for overlap in exact_overlaps(tests, where)]
    looked = not by_content_alone(tests)
    near = [str(overlap) for overlap in near_overlaps(tests, where, learnt, hashes)] if looked else []
    for kind, found in (("exact", exact), ("near", near)):
        cure = f"take out {some(found, _SHOWN)}; an evaluation does so by itself (evaluation.on_overlap=drop)" if found else ""
        told = (
            f"{len(found)} {kind} copies" if looked or kind == "exact" else f"not looked for in more than {NEAR_MOST:,} images of a stream"
        )
        yield Finding(f"{topic}, {kind}", not found, told, cure)
