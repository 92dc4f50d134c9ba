"""Published benchmark datasets: title, archive layout and official figures of each. Nothing is downloaded.

`BENCHMARKS` is the table (benchmarks.toml); `open_benchmark` is what `dataset=cub200` and the others call.
"""

import csv
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgvr.data import layouts
from fgvr.data.archives import Archive, Contents
from fgvr.data.catalog import SUPPORT_NAMES, TEST_NAMES, VALIDATION_NAMES, Catalog, Listing
from fgvr.data.datasets import Dataset
from fgvr.data.folder import Inspector, describe_bad_images
from fgvr.data.layouts import Reader
from fgvr.data.splits import OnBadImage, Shots, SplitRequest, split_few_shot
from fgvr.errors import ConfigError, DatasetError
from fgvr.types import Category, Figures, Sample
from fgvr.utils.paths import user_path
from fgvr.utils.text import nearest, normalise_name, plain_name

NAMES = Path(__file__).parent / "names"


@dataclass(frozen=True, slots=True)
class BenchmarkDataset:
    """One published dataset."""

    title: str
    superclass: str
    figures: Figures
    page: str  # where it is published
    archives: str  # what to extract
    parts: tuple[str, ...]  # what must be there; the first one tells the folder
    read: Reader
    inner: tuple[str, ...] = ()  # folders that extracting makes
    pictures: str = ""  # where the paths of split files start
    partitions: int = 1
    notes: tuple[str, ...] = ()


def _read_table(path: Path) -> dict[str, BenchmarkDataset]:
    """`benchmarks.toml`: every key of a table is a field of `BenchmarkDataset`, but for the figures."""
    found = {}
    for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items():
        classes, train, test = row.pop("figures")
        figures = Figures(classes, train, test, row.pop("train_each", None), row.pop("test_each", None))
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        found[name] = BenchmarkDataset(figures=figures, read=getattr(layouts, f"read_{name}"), **fields)
    return found


BENCHMARKS = _read_table(Path(__file__).with_suffix(".toml"))


@dataclass(frozen=True, slots=True)
class Name:
    """What people call a class: the name for prompts and reports, other spellings, and what it is a kind of ("" = the dataset's)."""

    name: str
    aliases: tuple[str, ...] = ()
    superclass: str = ""


def open_benchmark(
    *,
    name: str,
    root: Path | str,
    shots: Shots = 4,
    tail_shots: int | None = None,
    test_per_class: int | None = None,
    calibration: int = 0,
    split_seed: int = 0,
    split_file: Path | str | None = None,
    partition: int = 1,
    strict: bool = False,
    on_bad_image: OnBadImage = "skip",
    cache_dir: Path | None = None,
) -> Dataset:
    """A dataset of `BENCHMARKS` from its extracted archive at `root`, in its official order and split.

    `partition` is which of several official splits; `split_file` replaces the split by one of CoOp's (`split_zhou_*.json`, or a CSV with
    split and filename). Shots, calibration and test images are chosen among them as in any folder (`SplitRequest`).

    Raises:
        DatasetError: nothing (or something else) lies at `root`: says what is expected and where it is published; or lists that
            contradict themselves, with file and line.
    """
    request = SplitRequest(shots, test_per_class, calibration, split_seed, tail_shots, strict)
    known = _known(name)
    if not 1 <= partition <= known.partitions:
        raise ConfigError(f"dataset.partition={partition}: {known.title} has {known.partitions}")
    base = locate_archive(name, user_path(root))
    contents = known.read(Archive(base), partition)
    listing, notes = make_listing(name, known, contents, base), [*known.notes, *contents.notes]
    world = "official split" if contents.official else "seeded split"
    if partition > 1:
        world += f" {partition}"
    if split_file is not None:
        path = user_path(split_file)
        listing, world = apply_split_file(listing, path, known.pictures), path.stem
    inspector = Inspector(base, cache_dir=cache_dir, strict=on_bad_image == "error")
    split = split_few_shot(listing, inspector, request, notes)
    bad = inspector.bad_images
    notes += describe_bad_images(bad)
    figures = known.figures if split_file is None else None
    return Dataset(
        name, world, listing.catalog, known.superclass, split, base, tuple(notes), bad, listing, figures, inspector.seen, known.page
    )


def official_names(name: str) -> dict[str, Name]:
    """id -> Name in the official order of classes; empty where the archive's own names serve."""
    path = NAMES / f"{name}.tsv"
    if not path.exists():
        return {}
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {id: Name(shown, tuple(filter(None, "".join(rest[:1]).split("|"))), "".join(rest[1:2])) for id, shown, *rest in rows}


def make_listing(name: str, known: BenchmarkDataset, contents: Contents, base: Path) -> Listing:
    """Catalogue and samples of an archive; a label no class has, or an image listed twice, is a DatasetError that says where."""
    names = official_names(name)
    strangers = [f"{id} ({archive_name})" for id, archive_name in contents.classes if names and id not in names]
    if strangers:
        raise DatasetError(f"{base}: {known.title} has no class {', '.join(strangers[:5])}; is this {name}?")
    _check_order(base, contents, names)
    catalog = Catalog(tuple(_category(id, own, names.get(id), known.superclass) for id, own in contents.classes))
    parts: dict[bool, list[Sample]] = {False: [], True: []}
    seen: dict[str, str] = {}
    for row in contents.rows:
        if row.label not in catalog:
            span = " to ".join(catalog.ids[:1] + catalog.ids[-1:]) or "none"
            raise DatasetError(
                f"{base}: {row.where}: class {row.label!r} is none of the {len(catalog)} listed ({span}); "
                "extract the lists again, and take them all from one version"
            )
        if row.key in seen:
            raise DatasetError(f"{base}: {row.where}: {row.key} is listed before, in {seen[row.key]}; extract the lists again")
        seen[row.key] = row.where
        parts[row.test].append(Sample(base / row.key, row.key, row.label))
    own = dict(contents.classes)
    spellings = {id: (name.name, *name.aliases) for id, name in names.items()}
    return Listing(catalog, tuple(parts[False]), tuple(parts[True]), contents.official, own, contents.checksums, spellings)


def _check_order(base: Path, contents: Contents, names: Mapping[str, Name]) -> None:
    """A class under the name of another would be scored as that other: DatasetError. Names nobody knows are the doctor's business."""
    meant = {normalise_name(spelling): id for id, name in names.items() for spelling in (name.name, *name.aliases)}
    swapped = [(id, own) for id, own in contents.classes if meant.get(normalise_name(own), id) != id]
    if swapped:
        id, own = swapped[0]
        raise DatasetError(
            f"{base}: class {id} is {names[id].name} officially, but the archive calls it {own} ({len(swapped)} such classes): "
            "the class list was changed or is of another version; extract it again"
        )


def _category(id: str, own: str, known: Name | None, superclass: str) -> Category:
    """A class under its proper name; whatever the archive calls it remains an alias."""
    if known is None:
        known = Name(spoken(own))
    spellings = {normalise_name(known.name): known.name}
    for alias in (*known.aliases, own, spoken(own)):
        spellings.setdefault(normalise_name(alias), alias)
    extra = tuple(list(spellings.values())[1:]) if own != id or not own.isdecimal() else known.aliases
    return Category(id, known.name, known.superclass or superclass, extra)


def spoken(own: str) -> str:
    """An archive's name as people write it: `ApplyEyeMakeup` -> `apply eye makeup`, `/c/church/indoor` -> `indoor church`."""
    if own.startswith("/"):
        return " ".join(reversed(own.split("/")[2:])).replace("_", " ")
    inner = re.compile("(?<=[a-z])(?=[A-Z])")  # a word with one capital, or none, or with digits, stays as it is
    return " ".join(inner.sub(" ", word).lower() if word.isalpha() and inner.search(word) else word for word in plain_name(own).split())


def _known(name: str) -> BenchmarkDataset:
    if name not in BENCHMARKS:
        raise ConfigError(f"no dataset is called {name!r}; did you mean {', '.join(nearest(name, BENCHMARKS) or BENCHMARKS)}?")
    return BENCHMARKS[name]


def locate_archive(name: str, root: Path) -> Path:
    """The folder in which the archive's files lie; anything missing is a DatasetError with the way to mend it."""
    known = _known(name)
    folders = (root, *(root / name for name in known.inner))
    bases = [folder for marker in known.parts[0].split("|") for folder in folders if (folder / marker).exists()]
    lacks = {base: [part for part in known.parts[1:] if not (base / part).exists()] for base in bases}
    base = min(bases, key=lambda base: len(lacks[base]), default=None)  # a copy of the lists may lie above the archive
    missing = list(known.parts) if base is None else lacks[base]
    if base is not None and not missing:
        return base
    what = "does not exist" if not root.exists() else "is a file" if not root.is_dir() else "is not the archive of " + known.title
    if base is not None:
        what = f"lacks part of {known.title}"
    raise DatasetError(
        f"dataset={name}: {root if base is None else base} {what}; missing: {', '.join(p.replace('|', ' or ') for p in missing)}.\n"
        f"  {known.title} is published at: {known.page}\n"
        f"  Extract {known.archives}, and set dataset.root to the folder.\n"
        f"  Or: fgvr fetch dataset={name}, which downloads it, or says who must be asked."
    )


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
        if path.suffix.lower() == ".json":
            for part, entries in json.loads(text).items():
                yield from ((str(file), _part(part), str(label)) for file, label, *_ in entries)
        else:
            yield from ((row["filename"], _part(row["split"]), "") for row in csv.DictReader(text.splitlines(), restval=""))
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DatasetError(
            f"{path} is no split file ({error!r}); expected JSON with train, val and test lists of [path, label, name], "
            "or CSV with the columns split and filename"
        ) from error


def _part(word: str) -> str:
    if word not in SUPPORT_NAMES + VALIDATION_NAMES + TEST_NAMES:
        raise ValueError(f"part {word!r} is none of {', '.join(SUPPORT_NAMES + VALIDATION_NAMES + TEST_NAMES)}")
    return word
