"""Finds the labelled images of a folder, in any of the layouts people use, and decodes each image once.

Layouts: `<class>/**/*.jpg`; `{train,training,support}/<class>/**/*.jpg` beside `{test,testing,query}/<class>/**/*.jpg`; or a `labels.csv`
with the columns `filename, class_name[, class_id, split]`. A validation part beside a training part belongs to neither: it is left out
and said.
"""

import codecs
import csv
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from fgvr.data.catalog import NO_SUPPORT, SUPPORT_NAMES, TEST_NAMES, VALIDATION_NAMES, Catalog, Listing
from fgvr.errors import DatasetError, ImageError, StoreError
from fgvr.types import Category, Sample
from fgvr.utils.files import read_json, short_hash, write_json
from fgvr.utils.images import list_images, passed_over, read_image
from fgvr.utils.progress import track
from fgvr.utils.tables import parse_table
from fgvr.utils.text import natural, normalise_name, plain_name, printable, some

log = logging.getLogger(__name__)

TABLE = "labels.csv"
_LAYOUTS = "expected <class>/*.jpg, train/<class>/*.jpg beside test/<class>/*.jpg, or labels.csv (filename, class_name)"


def read_listing(root: Path, *, superclass: str) -> Listing:
    """The classes and images of `root`; anything that makes no sense is a DatasetError that says what to do."""
    if not root.exists():
        raise DatasetError(f"{root} does not exist; set dataset.root to a folder of class-named folders")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; dataset.root must be the folder that holds the class folders")
    if (root / TABLE).is_file():
        return read_table(root, superclass)
    folders = _subfolders(root)
    supports, validation, tests = (_named(folders, names) for names in (SUPPORT_NAMES, VALIDATION_NAMES, TEST_NAMES))
    if not supports:
        supports, validation = validation, []
    parts = supports + validation + tests
    if supports and all(_subfolders(part) for part in supports) and (validation or tests or len(parts) == len(folders)):
        flat = [part for part in tests if not _subfolders(part)]  # pictures without labels
        aside = [folder for folder in folders if folder not in parts]
        tests = [part for part in tests if part not in flat]
        return _read_split_folders(root, supports, tests, superclass, [*validation, *flat, *aside])
    if not folders:
        for suffix, option in ((".parquet", "parquet"), (".tar", "webdataset")):
            if next(root.glob(f"*{suffix}"), None):
                raise DatasetError(f"{root} holds {suffix} files and no class folders: write dataset={option} dataset.root={root}")
        loose = len(list_images(root))
        found = f"it holds {loose} images but no class folders" if loose else "it is empty"
        raise DatasetError(f"{root}: {found}; {_LAYOUTS}. Unlabelled images go to mode=classify or mode=discover")
    return Listing(_catalog(folders, superclass), _samples(root, folders), notes=_notes(root, folders, [root]))


# --- layouts -----------------------------------------------------------------------------------------------------------------


def _read_split_folders(root: Path, supports: list[Path], tests: list[Path], superclass: str, aside: list[Path]) -> Listing:
    """Class folders of the same name are one class, whichever part they lie in. What lies `aside` is counted only."""
    in_support = [folder for part in supports for folder in _subfolders(part)]
    in_test = [folder for part in tests for folder in _subfolders(part)]
    unknown = sorted({class_id(f.name) for f in in_test} - {class_id(f.name) for f in in_support})
    if unknown:
        raise DatasetError(f"{root}: classes with test but no support images: {', '.join(unknown[:10])}; {NO_SUPPORT}")
    catalog = _catalog(in_support, superclass)
    counts = ((folder, len(list_images(folder, recursive=True))) for folder in aside)
    left = [f"{folder.name} holds {count:,} images, which are neither support nor test: left out" for folder, count in counts if count]
    notes = (*left, *_notes(root, in_support + in_test, [root, *supports, *tests]))
    return Listing(catalog, _samples(root, in_support), _samples(root, in_test), official=bool(tests), notes=notes)


def _subfolders(folder: Path) -> list[Path]:
    """Visible ones; a link that leads back to this folder or above it is none."""
    here = Path(os.path.realpath(folder))
    found = (f for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))
    return sorted((f for f in found if not (f.is_symlink() and here.is_relative_to(os.path.realpath(f)))), key=lambda f: natural(f.name))


def _catalog(folders: Iterable[Path], superclass: str) -> Catalog:
    """A folder's name is the class's id; without number prefix and underscores it is its name."""
    names = {class_id(folder.name): plain_name(unicodedata.normalize("NFC", printable(folder.name))) for folder in folders}
    return Catalog(tuple(Category(id, names[id], superclass) for id in sorted(names, key=natural)))


def class_id(name: str) -> str:
    r"""A folder's name; bytes that are no UTF-8 as `\xe9`, so that an id can be written and sent anywhere. Accents are composed: a Mac may
    have written them apart, and another part of the same data not."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def _notes(root: Path, folders: list[Path], above: list[Path]) -> tuple[str, ...]:
    """What a reader may not expect: files that are passed over, images beside the class folders, and folders within these.

    Args: above: the folders that hold the class folders.
    """
    beside = [image for folder in above for image in list_images(folder)]
    stray = [f"{len(beside):,} images lie in no class folder and were left out, the first: {beside[0].relative_to(root)}"] if beside else []
    nested = [inner for folder in folders for inner in _subfolders(folder) if list_images(inner, recursive=True)]
    first = f", the first: {nested[0].relative_to(root)}" if nested else ""
    read = [f"{len(nested):,} folders within class folders were read as part of their class{first}"] if nested else []
    return (*stray, *read, *passed_over(folders))


def _named(folders: list[Path], names: tuple[str, ...]) -> list[Path]:
    return [folder for folder in folders if folder.name.lower() in names]


def _samples(root: Path, folders: Iterable[Path]) -> tuple[Sample, ...]:
    by_folder = {folder: list_images(folder, recursive=True) for folder in folders}
    empty = [folder for folder, images in by_folder.items() if not images]
    too_high = [found for folder in by_folder if len(by_folder) == 1 and (found := _classes_below(folder))]
    if empty or too_high:
        empty = empty or too_high
        cure = f"set dataset.root={too_high[0]}" if too_high else "add images or remove the folder"
        named = some([folder.relative_to(root) for folder in empty])
        raise DatasetError(f"{root}: class folders without images: {named}; {cure} ({_LAYOUTS})")
    return tuple(Sample(p, p.relative_to(root).as_posix(), class_id(folder.name)) for folder, images in by_folder.items() for p in images)


def _classes_below(folder: Path) -> Path | None:
    """The folder itself or one deep in it that holds several folders, and nothing before: then those are the classes."""
    inner = [] if list_images(folder) else _subfolders(folder)
    return folder if len(inner) > 1 else _classes_below(inner[0]) if inner else None


# --- `labels.csv`: images, their classes and perhaps their parts, in a table of the folder's owner ---------------------------


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


# --- inspecting images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that was left out, and why."""

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def describe_bad_images(bad: Sequence[BadImage]) -> list[str]:
    """A note that says how many, and the first; [] when there are none."""
    return [f"{len(bad):,} unusable images were left out, the first: {bad[0]}"] if bad else []


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
        self._bad: dict[str, BadImage] = {}

    @property
    def seen(self) -> tuple[Sample, ...]:
        """The usable samples among those inspected, with their content hashes."""
        return tuple(self._seen.values())

    @property
    def bad_images(self) -> tuple[BadImage, ...]:
        """Those among them that cannot be used, by key."""
        return tuple(self._bad[key] for key in sorted(self._bad))

    def inspect(self, samples: Iterable[Sample]) -> None:
        """Decode and hash these images in parallel, with a progress bar when it takes long."""
        fresh = {s.key: s for s in samples if s.key not in self._seen and s.key not in self._bad}
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
                self._bad[key] = BadImage(key, reason)

    def usable(self, samples: Iterable[Sample], limit: int | None = None) -> list[Sample]:
        """The first `limit` usable samples (all by default), with their content hashes; inspects no further than needed."""
        found: list[Sample] = []
        for sample in samples:
            if limit is not None and len(found) >= limit:
                break
            self.inspect([sample])
            if sample.key in self._seen:
                found.append(self._seen[sample.key])
        return found

    def _decode(self, new: list[Sample], stamps: dict[str, str]) -> None:
        try:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                findings = threads.map(_inspect, new)
                for sample, (sha256, reason) in zip(new, track(findings, "checking images", len(new)), strict=True):
                    self._index[sample.key] = [stamps[sample.key], sha256, reason]
        finally:  # an interruption keeps the images inspected so far
            if self._file is not None:
                write_json(self._file, {key: entry for key, entry in self._index.items() if not entry[2]})

    def _load(self) -> dict[str, list[str]]:
        if self._file is None or not self._file.exists():
            return {}
        try:
            return {key: [str(part) for part in entry] for key, entry in read_json(self._file).items() if len(entry) == 3}
        except (StoreError, AttributeError, TypeError):
            log.warning("%s is damaged; every image is inspected again", self._file)
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
