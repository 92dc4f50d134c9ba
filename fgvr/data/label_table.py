"""`labels.csv`: the images of a folder, their classes and perhaps their parts, in a table of its owner."""

from __future__ import annotations

import codecs
import csv
import os
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath

from fgvr.data.catalog import Catalog
from fgvr.data.listing import NO_SUPPORT, SUPPORT_NAMES, TEST_NAMES, VALIDATION_NAMES, Listing
from fgvr.errors import DatasetError
from fgvr.types import Category, Sample
from fgvr.utils.tables import parse_table
from fgvr.utils.text import natural, normalise_name, plain_name, printable

TABLE = "labels.csv"


def read_table(root: Path, superclass: str) -> Listing:
    """The classes and images of `root/labels.csv`; rows that make no sense are a DatasetError with file and line.

    File names count from `root`, from a folder below it, or from one above it; or they are absolute and lie inside.
    """
    path = root / TABLE
    rows = _rows(path)
    categories: dict[str, Category] = {}
    parts: dict[str | None, list[Sample]] = {"support": [], "test": [], "validation": [], None: []}
    written = [_inside(root, row.get("filename", "").strip(), f"{path}, line {line}") for line, row in rows]
    for (line, row), filename in zip(rows, _located(root, written), strict=True):
        name = unicodedata.normalize("NFC", row.get("class_name", "").strip())
        if not name or not filename:
            raise DatasetError(f"{path}, line {line}: filename and class_name must not be empty")
        if printable(name) != name or (printable(filename) != filename and not (root / filename).is_file()):
            raise DatasetError(f"{path} cannot be read as UTF-8 comma-separated text (line {line}); save it as UTF-8")
        id = row.get("class_id", "").strip() or name
        aliases = tuple(a for a in (row.get("display_name", "").strip(),) if a and normalise_name(a) != normalise_name(name))
        known = categories.setdefault(id, Category(id, plain_name(name), superclass, aliases))
        if normalise_name(known.name) != normalise_name(name):
            raise DatasetError(f"{path}, line {line}: class_id {id} is {known.name!r} above and {name!r} here")
        parts[_part(row.get("split", ""), path, line)].append(Sample(root / filename, filename, id))
    if parts[None] and len(parts[None]) < len(rows):
        raise DatasetError(f"{path}: {len(parts[None])} rows have no split while others have one; fill all of them or none")
    if not parts["support"]:
        parts["support"], parts["validation"] = parts["validation"], []
    support, test, aside = parts["support"], parts["test"], len(parts["validation"])
    categories = {str(s.label): categories[str(s.label)] for some in (support, test, parts[None]) for s in some}
    catalog = Catalog(tuple(categories[id] for id in sorted(categories, key=natural)))
    listed = Counter(sample.key for part in parts.values() for sample in part)
    twice = [key for key, count in listed.items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: listed more than once: {', '.join(twice[:10])}; keep one row of each")
    if test and not support:
        raise DatasetError(f"{path}: all rows are test; mark some as support (or train), or leave the split column out")
    without = sorted({str(s.label) for s in test} - {str(s.label) for s in support}, key=natural)
    if without:
        raise DatasetError(f"{path}: classes with test but no support images: {', '.join(catalog.names(without[:10]))}; {NO_SUPPORT}")
    notes = (f"{aside:,} rows of labels.csv are validation images, neither support nor test, and were left out",) if aside else ()
    return Listing(catalog, tuple(support or parts[None]), tuple(test), official=bool(test), notes=notes)


def _inside(root: Path, filename: str, where: str) -> str:
    """The name as a path from `root`, with forward slashes."""
    filename = filename.replace("\\", "/")
    if not os.path.isabs(filename) and ".." not in PurePosixPath(filename).parts:
        return PurePosixPath(filename).as_posix() if filename else ""
    for base, file in ((root.absolute(), Path(filename)), (root.resolve(), (root / filename).resolve())):
        if file.is_relative_to(base) and ".." not in file.parts:
            return file.relative_to(base).as_posix()
    raise DatasetError(f"{where}: {filename} must lie inside {root}")


def _located(root: Path, names: list[str]) -> list[str]:
    """The same names from `root`. Where files are missing, names may count from a folder below it (two levels), or from one above it:
    the reading that finds most of them is taken for all the missing ones."""
    gone = [name for name in names if name and not (root / name).is_file()]
    if not gone:
        return names
    below = [folder.relative_to(root) for pattern in ("*/", "*/*/") for folder in sorted(root.glob(pattern)) if folder.is_dir()]
    depth = min(len(PurePosixPath(name).parts) for name in gone)
    readings = [
        *({name: unicodedata.normalize(form, name) for name in gone} for form in ("NFC", "NFD")),  # accents composed, or apart
        *({name: (folder / name).as_posix() for name in gone} for folder in below),
        *({name: "/".join(PurePosixPath(name).parts[cut:]) for name in gone} for cut in range(1, depth)),
    ]
    sample = gone[:: max(1, len(gone) // 100)]  # a folder may hold a million files and thousands of folders
    best = max(readings, key=lambda reading: sum((root / reading[name]).is_file() for name in sample), default={})
    return [best[name] if name in best and (root / best[name]).is_file() else name for name in names]


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, cells by column) of each row that is not blank."""
    try:
        data = path.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
        columns, rows = parse_table(data.decode("utf-16") if wide else data.decode("utf-8-sig", "surrogateescape"))
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as UTF-8 comma-separated text: {error}") from error
    if not {"filename", "class_name"} <= {*columns}:
        raise DatasetError(f"{path}: needs the columns filename and class_name; found {', '.join(filter(None, columns)) or 'nothing'}")
    if not rows:
        raise DatasetError(f"{path} lists no image")
    return rows


def _part(split: str, path: Path, line: int) -> str | None:
    """None when the row does not say."""
    word = split.strip().lower()
    names = {"support": SUPPORT_NAMES, "validation": VALIDATION_NAMES, "test": TEST_NAMES}
    if word and word not in sum(names.values(), ()):
        raise DatasetError(f"{path}, line {line}: split {split!r} is none of {', '.join(sum(names.values(), ()))}")
    return next((part for part, words in names.items() if word in words), None)
