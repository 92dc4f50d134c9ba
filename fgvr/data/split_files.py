"""Splits that others published for a dataset, above all CoOp's: a listing's images dealt out anew, its classes as they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fgvr.data.catalog import Catalog
from fgvr.data.listing import SUPPORT_NAMES, TEST_NAMES, VALIDATION_NAMES, Listing
from fgvr.errors import DatasetError

Entry = tuple[str, str, str]
"""(path, part, label as the file has it or "")"""


def apply_split_file(listing: Listing, path: Path, pictures: str) -> Listing:
    """The listing with train and val as support and test as test; classes the file does not name are left out.

    Two kinds of file: JSON `{"train": [[path, label, name], ...], "val": ..., "test": ...}`, and CSV with the columns split and filename.
    Their paths count from the folder `pictures` of the archive. The images' classes are the archive's; a file whose labels would join or
    part them is a DatasetError, as are images that the archive has not, or that are listed twice.
    """
    samples = {sample.key: sample for sample in (*listing.pool, *listing.test)}
    parts: dict[bool, list[str]] = {False: [], True: []}
    to_class: dict[str, str] = {}
    to_label: dict[str, str] = {}
    seen: set[str] = set()
    for file, part, label in _entries(path):
        key = file if file in samples else pictures + file
        if key not in samples:
            raise DatasetError(f"{path} lists {file}, which the archive does not; is it the split of another dataset or version?")
        if key in seen:
            raise DatasetError(f"{path} lists {file} twice")
        seen.add(key)
        own = str(samples[key].label)
        if label and (to_class.setdefault(label, own), to_label.setdefault(own, label)) != (own, label):
            raise DatasetError(
                f"{path}: {file} has label {label}, but the archive's class is {own} "
                f"(label {label} was {to_class[label]} before, class {own} was label {to_label[own]}); it is of another version"
            )
        parts[part in TEST_NAMES].append(key)
    if not parts[True] or not parts[False]:
        raise DatasetError(f"{path} has {len(parts[False])} images to learn from and {len(parts[True])} to test; both are needed")
    used = {str(samples[key].label) for key in seen}
    catalog = Catalog(tuple(category for category in listing.catalog if category.id in used))
    pool, test = (tuple(samples[key] for key in parts[part]) for part in (False, True))
    return replace(listing, catalog=catalog, pool=pool, test=test, official=True)


def _entries(path: Path) -> Iterator[Entry]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"dataset.split_file={path} cannot be read: {error.strerror}") from error
    try:
        yield from (_json_entries(text) if path.suffix.lower() == ".json" else _csv_entries(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} is no split file ({error!r}); expected JSON with train, val and test lists of [path, label, name], "
            "or CSV with the columns split and filename"
        ) from error


def _json_entries(text: str) -> Iterator[Entry]:
    for part, entries in json.loads(text).items():
        for file, label, *_ in entries:
            yield str(file), _part(part), str(label)


def _csv_entries(text: str) -> Iterator[Entry]:
    for row in csv.DictReader(text.splitlines()):
        yield row["filename"], _part(row["split"]), ""


def _part(word: str) -> str:
    if word not in SUPPORT_NAMES + VALIDATION_NAMES + TEST_NAMES:
        raise ValueError(f"part {word!r} is none of {', '.join(SUPPORT_NAMES + VALIDATION_NAMES + TEST_NAMES)}")
    return word
