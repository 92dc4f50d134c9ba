"""Finds the labelled images of a folder, in any of the layouts people use, and looks at each image once.

Layouts: `<class>/*.jpg`; `{train,support,val}/<class>/*.jpg` beside `{test,query}/<class>/*.jpg`; or a `labels.csv` with the columns
`filename, class_name[, class_id, split]`.
"""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from fgvr.data.catalog import Catalog
from fgvr.data.splits import natural
from fgvr.errors import DatasetError, ImageError, StoreError
from fgvr.types import Category, Sample
from fgvr.utils.files import read_json, short_hash, write_json
from fgvr.utils.images import list_images, read_image
from fgvr.utils.progress import track
from fgvr.utils.text import normalise_name, plain_name

log = logging.getLogger(__name__)

SUPPORT_NAMES = ("support", "train", "val")
TEST_NAMES = ("test", "query")
_LAYOUTS = "expected <class>/*.jpg, train/<class>/*.jpg beside test/<class>/*.jpg, or labels.csv (filename, class_name)"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds, before any image was opened. `test` is empty when the folder itself makes no split."""

    catalog: Catalog
    pool: tuple[Sample, ...]  # everything, or the support part of an official split
    test: tuple[Sample, ...] = ()
    official: bool = False
    own_names: Mapping[str, str] = field(default_factory=dict)  # class id -> what a published archive calls it
    checksums: Mapping[str, str] = field(default_factory=dict)  # key -> md5, where an archive brings them
    official_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # id -> known spellings, in the official order of classes


def read_listing(root: Path, *, superclass: str) -> Listing:
    """The classes and images of `root`; anything that makes no sense is a DatasetError that says what to do."""
    if not root.exists():
        raise DatasetError(f"{root} does not exist; set dataset.root to a folder of class-named folders")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; dataset.root must be the folder that holds the class folders")
    if (root / "labels.csv").is_file():
        return _read_table(root, superclass)
    folders = _subfolders(root)
    parts = {folder.name.lower(): folder for folder in folders}
    supports = [parts[name] for name in SUPPORT_NAMES if name in parts]
    tests = [parts[name] for name in TEST_NAMES if name in parts]
    if supports and all(_subfolders(part) for part in supports + tests) and (tests or len(supports) == len(folders)):
        return _read_split_folders(root, supports, tests, superclass)
    if not folders:
        loose = len(list_images(root))
        found = f"it holds {loose} images but no class folders" if loose else "it is empty"
        raise DatasetError(f"{root}: {found}; {_LAYOUTS}. Unlabelled images go to mode=classify or mode=discover")
    return Listing(_catalog(folders, superclass), _samples(root, folders))


# --- layouts -----------------------------------------------------------------------------------------------------------------


def _read_split_folders(root: Path, supports: list[Path], tests: list[Path], superclass: str) -> Listing:
    """Class folders of the same name are one class, whichever part they lie in."""
    in_support = [folder for part in supports for folder in _subfolders(part)]
    in_test = [folder for part in tests for folder in _subfolders(part)]
    unknown = sorted({f.name for f in in_test} - {f.name for f in in_support})
    if unknown:
        raise DatasetError(f"{root}: classes with test but no support images: {', '.join(unknown[:10])}")
    catalog = _catalog({folder.name: folder for folder in in_support}.values(), superclass)
    return Listing(catalog, _samples(root, in_support), _samples(root, in_test), official=bool(tests))


def _read_table(root: Path, superclass: str) -> Listing:
    path = root / "labels.csv"
    rows = _rows(path)
    categories: dict[str, Category] = {}
    parts: dict[bool | None, list[Sample]] = {True: [], False: [], None: []}
    for line, row in enumerate(rows, 2):
        name, filename = row.get("class_name", "").strip(), row.get("filename", "").strip().replace("\\", "/").removeprefix("./")
        if not name or not filename:
            raise DatasetError(f"{path}, line {line}: filename and class_name must not be empty")
        if os.path.isabs(filename) or ".." in Path(filename).parts:
            raise DatasetError(f"{path}, line {line}: {filename} must lie inside {root}")
        id = row.get("class_id", "").strip() or name
        aliases = tuple(a for a in (row.get("display_name", "").strip(),) if a and normalise_name(a) != normalise_name(name))
        known = categories.setdefault(id, Category(id, plain_name(name), superclass, aliases))
        if normalise_name(known.name) != normalise_name(name):
            raise DatasetError(f"{path}, line {line}: class_id {id} is {known.name!r} above and {name!r} here")
        parts[_is_test(row.get("split", ""), path, line)].append(Sample(root / filename, filename, id))
    if parts[None] and (parts[True] or parts[False]):
        raise DatasetError(f"{path}: {len(parts[None])} rows have no split while others have one; fill all of them or none")
    catalog = Catalog(tuple(categories[id] for id in sorted(categories, key=natural)))
    listed = Counter(sample.key for part in parts.values() for sample in part)
    twice = [key for key, count in listed.items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: listed more than once: {', '.join(twice[:10])}")
    if parts[True] and not parts[False]:
        raise DatasetError(f"{path}: all rows are test; mark some as support (or train, val), or leave the split column out")
    without = sorted({str(s.label) for s in parts[True]} - {str(s.label) for s in parts[False]}, key=natural)
    if without:
        raise DatasetError(f"{path}: classes with test but no support images: {', '.join(catalog.names(without[:10]))}")
    return Listing(catalog, tuple(parts[False] or parts[None]), tuple(parts[True]), official=bool(parts[True]))


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = [str(name).strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            missing = {"filename", "class_name"} - set(columns)
            if missing:
                raise DatasetError(f"{path}: needs the columns filename and class_name; found {', '.join(columns) or 'nothing'}")
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as UTF-8 comma-separated text: {error}") from error
    if not rows:
        raise DatasetError(f"{path} lists no image")
    return rows


def _is_test(split: str, path: Path, line: int) -> bool | None:
    """None when the row does not say."""
    word = split.strip().lower()
    if word and word not in SUPPORT_NAMES + TEST_NAMES:
        raise DatasetError(f"{path}, line {line}: split {split!r} is none of {', '.join(SUPPORT_NAMES + TEST_NAMES)}")
    return word in TEST_NAMES if word else None


def _subfolders(folder: Path) -> list[Path]:
    found = (f for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))
    return sorted(found, key=lambda f: natural(f.name))


def _catalog(folders: Iterable[Path], superclass: str) -> Catalog:
    """A folder's name is the class's id; without number prefix and underscores it is its name."""
    ordered = sorted(folders, key=lambda f: natural(f.name))
    return Catalog(tuple(Category(f.name, plain_name(f.name), superclass) for f in ordered))


def _samples(root: Path, folders: Iterable[Path]) -> tuple[Sample, ...]:
    by_folder = {folder: list_images(folder) for folder in folders}
    empty = [folder for folder, images in by_folder.items() if not images]
    if empty:
        inner = [f for f in empty if any(list_images(sub) for sub in _subfolders(f))]
        cure = f"set dataset.root={inner[0]}" if len(inner) == len(by_folder) == 1 else "add images or remove the folder"
        named = ", ".join(str(folder.relative_to(root)) for folder in empty[:10])
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        raise DatasetError(f"{root}: class folders without images: {named}{more}; {cure} ({_LAYOUTS})")
    return tuple(Sample(p, p.relative_to(root).as_posix(), folder.name) for folder, images in by_folder.items() for p in images)


# --- looking at images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that was left out, and why."""

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class Inspector:
    """Decodes each image once and remembers its content hash by path, size and time of change.

    The index is a JSON file below `cache_dir` (None: this process only); losing it costs time. What could not be used is looked at again
    by the next process: permissions, a network disk or too many open files may have been the reason.
    """

    def __init__(self, root: Path, *, cache_dir: Path | None, strict: bool) -> None:
        self.root, self._strict = root, strict
        self._file = None if cache_dir is None else Path(cache_dir) / f"images-{short_hash(str(root.resolve()))}.json"
        self._index: dict[str, list[str]] = self._load()
        self._seen: dict[str, Sample] = {}
        self.bad: dict[str, BadImage] = {}

    @property
    def seen(self) -> tuple[Sample, ...]:
        """The usable samples among those looked at, with their content hashes."""
        return tuple(self._seen.values())

    def look(self, samples: Iterable[Sample]) -> None:
        """Look at these now, several at a time, with a progress bar when it takes long."""
        fresh = {s.key: s for s in samples if s.key not in self._seen and s.key not in self.bad}
        stamps = {key: _stamp(sample) for key, sample in fresh.items()}
        new = [sample for key, sample in fresh.items() if self._index.get(key, [""])[0] != stamps[key]]
        if new:
            self._decode(new, stamps)
        for key, sample in fresh.items():
            _, sha256, reason = self._index[key]
            if not reason:
                self._seen[key] = replace(sample, sha256=sha256)
            elif self._strict:
                raise ImageError(f"{sample.image}: {reason}; mend or remove it, or set dataset.on_bad_image=skip")
            else:
                self.bad[key] = BadImage(key, reason)

    def good(self, samples: Iterable[Sample], limit: int | None = None) -> list[Sample]:
        """The first `limit` usable samples (all by default), with their content hashes; looks no further than it must."""
        found: list[Sample] = []
        for sample in samples:
            if limit is not None and len(found) >= limit:
                break
            self.look([sample])
            if sample.key in self._seen:
                found.append(self._seen[sample.key])
        return found

    def _decode(self, new: list[Sample], stamps: dict[str, str]) -> None:
        try:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                findings = threads.map(_inspect, new)
                for sample, (sha256, reason) in zip(new, track(findings, "checking images", len(new)), strict=True):
                    self._index[sample.key] = [stamps[sample.key], sha256, reason]
        finally:  # an interrupted look keeps what it has seen
            if self._file is not None:
                write_json(self._file, {key: entry for key, entry in self._index.items() if not entry[2]})

    def _load(self) -> dict[str, list[str]]:
        if self._file is None or not self._file.exists():
            return {}
        try:
            return {key: [str(part) for part in entry] for key, entry in read_json(self._file).items() if len(entry) == 3}
        except (StoreError, AttributeError, TypeError):
            log.warning("%s is damaged; every image is looked at again", self._file)
            return {}


def _stamp(sample: Sample) -> str:
    try:
        status = os.stat(str(sample.image))
    except OSError:
        return "absent"
    return f"{status.st_size}-{status.st_mtime_ns}"


def _inspect(sample: Sample) -> tuple[str, str]:
    """(sha256, "") of a usable image, ("", reason) of another."""
    try:
        return read_image(sample.image)[1], ""
    except ImageError as error:
        return "", str(error).removeprefix(f"{sample.image}: ")
