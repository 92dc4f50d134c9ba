"""Datasets as the rest of the program sees them: classes, and which images play which role. Opening one loads no model.

Nothing but names leaves this file: whatever else a dataset knows about its classes stays out of reach of who writes descriptions.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fgvr.data import birds
from fgvr.data.catalog import Catalog
from fgvr.data.folder import BadImage, Inspector, Listing, read_listing
from fgvr.data.splits import Split, choose_shots, natural, rank, require
from fgvr.errors import ConfigError, DatasetError
from fgvr.types import Category, Sample
from fgvr.utils.files import file_lock, read_json, sha256_file, short_hash, write_json
from fgvr.utils.images import pixels_sha256
from fgvr.utils.progress import track

BIRD_POOL = 16
"""Support and calibration images drawn per species; `split_seed` chooses among them."""
LOOK_AT_ALL = 20_000
"""An official split with more images than this is only opened where it is used."""

OnBadImage = Literal["skip", "error"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Classes, their images by role, and what a reader of its results must know."""

    name: str
    world: str  # which rendered world, or which folder
    catalog: Catalog
    superclass: str
    split: Split
    root: Path  # keys of samples are relative to it
    notes: tuple[str, ...] = ()
    bad_images: tuple[BadImage, ...] = ()  # left out

    def __str__(self) -> str:
        split = self.split
        roles = f"{len(split.support)} support, {len(split.calibration)} calibration, {len(split.test)} test images"
        return f"{self.name} ({self.world}): {len(self.catalog)} classes, {roles}"


# --- folders -----------------------------------------------------------------------------------------------------------------


def open_folder(
    *,
    root: Path | str,
    shots: int | None = 4,
    test_per_class: int | None = None,
    split_seed: int = 0,
    calibration: int = 0,
    superclass: str = "object",
    on_bad_image: OnBadImage = "skip",
    cache_dir: Path | None = None,
) -> Dataset:
    """A folder of labelled images, in any layout of `data.folder`.

    An official test part is kept; `shots` and `calibration` images per class then come from the support part. Without one, images that
    are there twice count once, and what `shots` and `calibration` leave of each class is the test. `test_per_class` (at most so many,
    0: none) and the shots are chosen by `split_seed`. `shots=None` takes all that is not wanted elsewhere.
    Content hashes are remembered below `cache_dir`. Too few images, unreadable layouts: DatasetError.
    """
    _check(shots, test_per_class, calibration, on_bad_image)
    root = Path(root).expanduser()
    listing = read_listing(root, superclass=superclass)
    inspector = Inspector(root, cache_dir=cache_dir, strict=on_bad_image == "error")
    if not listing.official or len(listing.pool) + len(listing.test) <= LOOK_AT_ALL:
        inspector.look((*listing.pool, *listing.test))
    notes: list[str] = []
    if listing.official:
        split = _official_split(listing, inspector, shots, test_per_class, calibration, split_seed)
    else:
        split = _seeded_split(listing, inspector, shots, test_per_class, calibration, split_seed, notes)
    bad = tuple(inspector.bad[key] for key in sorted(inspector.bad))
    notes.extend(_bad_image_notes(bad))
    name = re.sub(r"[^\w.-]+", "_", root.resolve().name) or "folder"
    return Dataset(name, root.resolve().name, listing.catalog, superclass, split, root, tuple(notes), bad)


def _official_split(
    listing: Listing, inspector: Inspector, shots: int | None, test_per_class: int | None, calibration: int, seed: int
) -> Split:
    pools, tests = _by_class(listing.catalog, listing.pool), _by_class(listing.catalog, listing.test)
    wanted = None if shots is None else shots + calibration
    ranked = {label: rank(samples, seed) for label, samples in pools.items()}
    inspector.look(sample for samples in ranked.values() for sample in samples[:wanted])
    usable = {label: inspector.good(samples, wanted) for label, samples in ranked.items()}
    require(usable, (shots or 1) + calibration, _wish(shots, calibration), listing.catalog.as_dict())
    chosen = {label: rank(samples, seed)[:test_per_class] for label, samples in tests.items()}
    inspector.look(sample for samples in chosen.values() for sample in samples)
    test = [s for label in chosen for s in _in_order(inspector.good(rank(tests[label], seed), test_per_class))]
    if not test and test_per_class != 0:
        raise DatasetError(f"{inspector.root}: no usable test image")
    support, held_out = _cut(usable, shots, calibration)
    return Split(support, tuple(test), held_out)


def _seeded_split(
    listing: Listing,
    inspector: Inspector,
    shots: int | None,
    test_per_class: int | None,
    calibration: int,
    seed: int,
    notes: list[str],
) -> Split:
    usable = inspector.good(listing.pool)
    unique = _without_copies(usable)
    if len(unique) < len(usable):
        notes.append(f"{len(usable) - len(unique)} exact copies of other images were left out")
    pools = {label: rank(samples, seed) for label, samples in _by_class(listing.catalog, unique).items()}
    tested = (test_per_class or 0) if shots is None else min(1, 1 if test_per_class is None else test_per_class)
    require(pools, (shots or 1) + calibration + tested, _wish(shots, calibration, tested), listing.catalog.as_dict())
    if shots is None:
        test = [s for samples in pools.values() for s in _in_order(samples[len(samples) - tested :])]
        kept = {label: samples[: len(samples) - tested] for label, samples in pools.items()}
    else:
        used = shots + calibration
        test = [s for samples in pools.values() for s in _in_order(samples[used:][:test_per_class])]
        kept = {label: samples[:used] for label, samples in pools.items()}
    support, held_out = _cut(kept, shots, calibration)
    return Split(support, tuple(test), held_out)


def _cut(ranked: Mapping[str, Sequence[Sample]], shots: int | None, calibration: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(support, calibration): the first `shots` of each class (None: all but `calibration`), and the next ones."""
    ends = {label: len(samples) - calibration if shots is None else shots for label, samples in ranked.items()}
    support = tuple(s for label, samples in ranked.items() for s in samples[: ends[label]])
    return support, tuple(s for label, samples in ranked.items() for s in samples[ends[label] : ends[label] + calibration])


def _without_copies(samples: Sequence[Sample]) -> list[Sample]:
    """One sample per content: the first by key. An image that two classes claim belongs to neither."""
    labels: dict[str, set[str | None]] = {}
    first: dict[str, str] = {}
    for sample in _in_order(samples):
        labels.setdefault(sample.sha256, set()).add(sample.label)
        first.setdefault(sample.sha256, sample.key)
    return [s for s in samples if first[s.sha256] == s.key and len(labels[s.sha256]) == 1]


def _by_class(catalog: Catalog, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """In the catalogue's order; a class without samples has an empty list."""
    groups: dict[str, list[Sample]] = {id: [] for id in catalog.ids}
    for sample in samples:
        groups[str(sample.label)].append(sample)
    return groups


def _in_order(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: natural(s.key))


# --- birds -------------------------------------------------------------------------------------------------------------------


def open_birds(
    *,
    root: Path | str,
    shots: int = 4,
    test_per_class: int = 20,
    calibration: int = 4,
    split_seed: int = 0,
    seed: int = 9000,
    genera: Sequence[int] = birds.DEFAULT_GENERA,
    difficulty: float = 1.0,
    on_bad_image: OnBadImage = "skip",
) -> Dataset:
    """The rendered world `seed`, drawn once below `root`/birds and from then on a dataset like any other.

    `split_seed` chooses the shots and the calibration images among `BIRD_POOL` (or as many as are wanted) per species; the test images
    are always the same. Files that have gone or changed size count as bad images.
    """
    _check(shots, test_per_class, calibration, on_bad_image)
    try:
        world = birds.make_world(seed=seed, genera=tuple(genera), difficulty=difficulty)
    except ValueError as error:
        raise ConfigError(f"dataset=birds: {error}") from error
    counts = {"support": max(BIRD_POOL, shots), "test": test_per_class, "calibration": max(BIRD_POOL, calibration)}
    folder = _rendered(world, tuple(genera), counts, Path(root).expanduser() / "birds")
    catalog = Catalog(tuple(Category(f"{i:03d}", species.name, "bird") for i, species in enumerate(world.species)))
    pools, bad = _bird_files(folder, catalog, strict=on_bad_image == "error")
    split = Split(
        choose_shots(pools["support"], shots, split_seed),
        tuple(sample for samples in pools["test"].values() for sample in samples),
        choose_shots(pools["calibration"], calibration, split_seed),
    )
    notes = [] if birds.is_reserved(seed) else [f"world {seed} is not reserved: it may overlap with the training world of models=tiny"]
    return Dataset("birds", folder.parent.name, catalog, "bird", split, folder, (*notes, *_bad_image_notes(bad)), bad)


def _rendered(world: birds.World, genera: tuple[int, ...], counts: Mapping[str, int], parent: Path) -> Path:
    """`<parent>/<world>/<counts>`, drawn first if need be; it appears when it is whole. The world's name does not depend on the counts."""
    probe = pixels_sha256(birds.render(world, 0, "support", 0))  # another renderer or Pillow draws another world
    settings = {"seed": world.seed, "genera": genera, "difficulty": world.difficulty, "probe": probe}
    folder = parent / f"world{world.seed}-{short_hash(settings)}" / "-".join(f"{role}{count}" for role, count in counts.items())
    settings["counts"] = dict(counts)
    if not (folder / "manifest.json").exists():
        with file_lock(folder.parent / f".{folder.name}.lock"):
            if not (folder / "manifest.json").exists():
                _draw(world, settings, folder)
    return folder


def _draw(world: birds.World, settings: Mapping[str, Any], folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    jobs = [
        (role, index, number, partial / role / f"{index:03d}_{species.name}" / f"{number:03d}.png")
        for role, count in settings["counts"].items()
        for index, species in enumerate(world.species)
        for number in range(count)
    ]
    files: dict[str, dict[str, Any]] = {}
    for role, index, number, path in track(jobs, f"drawing the birds of world {world.seed}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        birds.render(world, index, role, number).save(path, compress_level=3)
        key = path.relative_to(partial).as_posix()
        files[key] = {"role": role, "label": f"{index:03d}", "sha256": sha256_file(path), "bytes": path.stat().st_size}
    names = {f"{index:03d}": species.name for index, species in enumerate(world.species)}
    write_json(partial / "manifest.json", {"schema": 1, "settings": dict(settings), "classes": names, "files": files})
    partial.rename(folder)


def _bird_files(folder: Path, catalog: Catalog, *, strict: bool) -> tuple[dict[str, dict[str, list[Sample]]], tuple[BadImage, ...]]:
    """Samples by role and class, in the order they were drawn, and the files that are not what they were."""
    pools: dict[str, dict[str, list[Sample]]] = {role: {id: [] for id in catalog.ids} for role in ("support", "test", "calibration")}
    bad: list[BadImage] = []
    for key, row in sorted(read_json(folder / "manifest.json")["files"].items()):
        path = folder / key
        if path.is_file() and path.stat().st_size == row["bytes"]:
            pools[row["role"]][row["label"]].append(Sample(path, key, row["label"], row["sha256"]))
        else:
            bad.append(BadImage(key, f"is not the file that was drawn; delete {folder} to draw it again"))
    if bad and strict:
        raise DatasetError(f"{folder / bad[0].key} {bad[0].reason}")
    return pools, tuple(bad)


# --- both --------------------------------------------------------------------------------------------------------------------


def _check(shots: int | None, test_per_class: int | None, calibration: int, on_bad_image: str) -> None:
    if shots is not None and shots < 1:
        raise ConfigError(f"dataset.shots must be at least 1, not {shots}")
    if test_per_class is not None and test_per_class < 0:
        raise ConfigError(f"dataset.test_per_class must not be negative, not {test_per_class}")
    if calibration < 0:
        raise ConfigError(f"dataset.calibration must not be negative, not {calibration}")
    if on_bad_image not in ("skip", "error"):
        raise ConfigError(f"dataset.on_bad_image must be skip or error, not {on_bad_image!r}")


def _wish(shots: int | None, calibration: int, tested: int = 0) -> str:
    parts = [f"dataset.shots={'all' if shots is None else shots}"]
    parts += [f"dataset.calibration={calibration}"] * bool(calibration) + [f"{tested} to test"] * bool(tested)
    return " with ".join((parts[0], " and ".join(parts[1:]))) if parts[1:] else parts[0]


def _bad_image_notes(bad: Sequence[BadImage]) -> list[str]:
    return [f"{len(bad)} unusable images were left out, the first: {bad[0]}"] if bad else []
