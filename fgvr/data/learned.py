"""Photographs that a person has named in a review: a table of files, classes and content hashes that joins a dataset's support images.

The table is never changed: what is learned later is another one, so that a base and the images it was built from stay together.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fgvr.data.datasets import Dataset
from fgvr.data.folder import Inspector
from fgvr.data.leaks import exact_overlaps
from fgvr.data.splits import Split
from fgvr.data.streams.samples import without
from fgvr.errors import DatasetError
from fgvr.types import Sample
from fgvr.utils.files import atomic_write, short_hash

COLUMNS = ("file", "class_id", "sha256")


def write(folder: Path, name: str, samples: Sequence[Sample]) -> Path:
    """`<folder>/<name>-<hash>.csv`, named by its content. Args: samples: files with labels and content hashes."""
    rows = sorted((sample.sha256, str(Path(str(sample.image)).absolute()), str(sample.label)) for sample in samples)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((file, label, sha256) for sha256, file, label in rows)
    file = folder / f"{name}-{short_hash([(sha256, label) for sha256, _, label in rows])}.csv"
    return atomic_write(file, text.getvalue().encode("utf-8", "surrogateescape"))  # as the file system has the names


def read(file: Path) -> list[Sample]:
    """The photographs of a table. DatasetError where it is none."""
    if not file.is_file():
        raise DatasetError(f"{file} does not exist; knowledge.learned takes the table that mode=review with review.learn=true names")
    try:
        rows = list(csv.reader(io.StringIO(file.read_bytes().decode("utf-8", "surrogateescape"), newline=""), strict=True))
    except (OSError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read ({error}); let mode=review write it again") from error
    if not rows or tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise DatasetError(f"{file} is no table of learned photographs ({', '.join(COLUMNS)}); let mode=review write it again")
    return [Sample(Path(path), path, label, sha256) for path, label, sha256 in rows[1:]]


def join(dataset: Dataset, file: Path, *, cache_dir: Path) -> Dataset:
    """The dataset with a table's photographs among its support images; they leave its other parts.

    DatasetError where a photograph is not there any more, is another one now, or is of a class that the dataset does not have.
    """
    samples = read(file)
    for sample in samples:
        if sample.label not in dataset.catalog:
            raise DatasetError(f"{file}: {sample.key} is of class {sample.label}, which {dataset.name} does not have (any more)")
    inspector = Inspector(file.parent, cache_dir=cache_dir, strict=False)
    inspector.inspect(samples)
    found = {sample.key: sample.sha256 for sample in inspector.seen}
    changed = [sample.key for sample in samples if found.get(sample.key) != sample.sha256]
    if changed:
        first, more = changed[0], f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        told = "is another picture now" if first in found else "is not there any more"
        raise DatasetError(f"{first}{more}, which a person has named, {told}; put it back, or take its row out of {file}")
    split, learned = dataset.split, {sample.sha256 for sample in samples}
    known = {sample.sha256 for sample in split.support}
    test = without(split.test, {overlap.key for overlap in exact_overlaps(split.test, dict.fromkeys(learned, ""))})
    calibration = tuple(sample for sample in split.calibration if sample.sha256 not in learned)
    support = (*split.support, *(sample for sample in samples if sample.sha256 not in known))
    left = len(split.test) + len(split.calibration) - len(test) - len(calibration)
    notes = [f"{len(support) - len(split.support)} photographs named in a review are among the support images"]
    if left:
        notes.append(
            f"{left} of them were test or calibration images and are so no longer: the others are easier than the images were before, so "
            "compare with the same images of the former run, and read a promise of risk as one about new images"
        )
    return replace(dataset, split=Split(support, test, calibration), notes=(*dataset.notes, *notes))
