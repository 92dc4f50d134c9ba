"""Datasets as the rest of the program sees them: classes, and which images play which role. Opening one loads no model.

Nothing but names leaves this file: whatever else a dataset knows about its classes stays out of reach of who writes descriptions.
"""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fgvr.data import birds
from fgvr.data.catalog import Catalog, Listing
from fgvr.data.folder import TABLE, BadImage, Inspector, describe_bad_images, read_listing
from fgvr.data.splits import OnBadImage, Shots, Split, SplitRequest, choose_shots, leave_out_contradictions, split_few_shot
from fgvr.errors import ConfigError, DatasetError
from fgvr.types import Category, Figures, Sample
from fgvr.utils.files import file_lock, file_size, read_json, sha256_file, short_hash, write_json
from fgvr.utils.images import IMAGE_SUFFIXES, pixels_sha256
from fgvr.utils.paths import examples_dir, user_path
from fgvr.utils.progress import track
from fgvr.utils.text import printable

log = logging.getLogger(__name__)

BIRD_POOL = 16
"""Support and calibration images drawn per species; `split_seed` chooses among them."""


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
    bad_images: Sequence[BadImage] = ()  # left out
    listing: Listing | None = None  # all that the archive lists, also what this split does not use
    figures: Figures | None = None  # what the archive's makers say it holds
    seen: tuple[Sample, ...] = ()  # the images looked at, with their hashes
    page: str = ""  # where the archive is published

    def __str__(self) -> str:
        split = self.split
        roles = f"{len(split.support)} support, {len(split.calibration)} calibration, {len(split.test)} test images"
        return f"{self.name} ({self.world}): {len(self.catalog)} classes, {roles}"


# --- folders -----------------------------------------------------------------------------------------------------------------


def open_folder(
    *,
    root: Path | str,
    shots: Shots = 4,
    test_per_class: int | None = None,
    split_seed: int = 0,
    calibration: int = 0,
    tail_shots: int | None = None,
    superclass: str = "object",
    strict: bool = False,
    on_bad_image: OnBadImage = "skip",
    cache_dir: Path | None = None,
) -> Dataset:
    """A folder of labelled images, in any layout of `data.folder`.

    An official test part is kept; `shots` and `calibration` images per class then come from the support part. Without one, images that
    are there twice count once, and what `shots` and `calibration` leave of each class is the test. `test_per_class` (at most so many,
    0: none) and the shots are chosen by `split_seed`. `shots="all"` takes all that is not wanted elsewhere; `tail_shots` makes the
    support long-tailed (`SplitRequest`).
    A class with fewer images gives what it has; with `strict` that is a DatasetError. A photograph in two classes is left out.
    Content hashes are remembered below `cache_dir`. Classes without images, unreadable layouts: DatasetError.
    """
    request = SplitRequest(shots, test_per_class, calibration, split_seed, tail_shots, strict)
    root = user_path(root)
    root = root.parent if root.name == TABLE and root.is_file() else root
    listing = read_listing(root, superclass=superclass)
    inspector = Inspector(root, cache_dir=cache_dir, strict=on_bad_image == "error")
    notes = list(listing.notes)
    split = split_few_shot(leave_out_contradictions(listing, inspector, notes), inspector, request, notes)
    for note in notes:
        log.warning("%s: %s", root, note)
    used = len(split.support) + len(split.calibration)
    if listing.official and shots != "all" and used < len(listing.pool):
        log.info("%d of %d labelled images are used (%s); dataset.shots=all uses all", used, len(listing.pool), request.describe())
    bad = inspector.bad_images
    notes += describe_bad_images(bad)
    name = re.sub(r"[^\w.-]+", "_", root.resolve().name) or "folder"
    return Dataset(
        name, printable(root.resolve().name), listing.catalog, superclass, split, root, tuple(notes), bad, listing, seen=inspector.seen
    )


def open_example(*, name: str, **settings: Any) -> Dataset:
    """A folder that comes with fgvr, opened with the settings of `open_folder`."""
    return open_folder(root=examples_dir() / name, **settings)


# --- birds -------------------------------------------------------------------------------------------------------------------


def open_birds(
    *,
    root: Path | str,
    shots: Shots = 4,
    test_per_class: int = 20,
    calibration: int = 4,
    tail_shots: int | None = None,
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
    request = SplitRequest(shots, test_per_class, calibration, split_seed, tail_shots)
    if shots == "all":
        raise ConfigError("dataset.shots=all: there is no end of rendered birds; write a number, such as dataset.shots=4")
    try:
        world = birds.make_world(seed=seed, genera=tuple(genera), difficulty=difficulty)
    except ValueError as error:
        raise ConfigError(f"dataset=birds: {error}") from error
    counts = {"support": max(BIRD_POOL, shots), "test": test_per_class, "calibration": max(BIRD_POOL, calibration)}
    if photographs := _photographs(user_path(root)):
        raise ConfigError(
            f"dataset=birds draws its pictures below dataset.root={root}, which holds photographs ({photographs}): "
            f"write dataset=folder dataset.root={root} to recognise those, or leave dataset.root out"
        )
    folder = _rendered(world, tuple(genera), counts, user_path(root) / "birds")
    catalog = Catalog(tuple(Category(f"{i:03d}", species.name, "bird") for i, species in enumerate(world.species)))
    pools, bad = _bird_files(folder, catalog, strict=on_bad_image == "error")
    support = choose_shots(pools["support"], request.shots_of(catalog.ids) or shots, split_seed)
    tests = tuple(sample for some in pools["test"].values() for sample in some)
    split = Split(support, tests, choose_shots(pools["calibration"], calibration, split_seed))
    notes = []
    if not birds.is_reserved(seed, tuple(genera)):
        shape = f" with genera {[*genera]}" if birds.is_reserved(seed) else ""
        notes.append(f"world {seed}{shape} is not reserved: it may overlap with the training world of models=tiny")
    return Dataset("birds", folder.parent.name, catalog, "bird", split, folder, (*notes, *describe_bad_images(bad)), bad)


def _photographs(root: Path) -> Path | None:
    """An image of somebody's, in this folder or in a class folder of it; birds are drawn among none."""
    if any(root.glob("birds/world*")):
        return None
    places = ("*", "*/*", "train/*/*", "test/*/*")
    return next((path for place in places for path in root.glob(place) if path.suffix.lower() in IMAGE_SUFFIXES), None)


def _rendered(world: birds.World, genera: tuple[int, ...], counts: Mapping[str, int], parent: Path) -> Path:
    """`<parent>/<world>/<counts>`, drawn first if need be; it appears when it is whole. The world's name does not depend on the counts."""
    settings = {"seed": world.seed, "genera": genera, "difficulty": world.difficulty, "probe": _probe(world)}
    folder = parent / f"world{world.seed}-{short_hash(settings)}" / "-".join(f"{role}{count}" for role, count in counts.items())
    settings["counts"] = dict(counts)
    if not (folder / "manifest.json").exists():
        with file_lock(folder.parent / f".{folder.name}.lock"):
            if not (folder / "manifest.json").exists():
                _draw(world, settings, folder)
    return folder


@cache
def _probe(world: birds.World) -> str:
    """Another renderer or Pillow draws another world."""
    return pixels_sha256(birds.render(world, 0, "support", 0))


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


@lru_cache(maxsize=1 << 14)
def _drawn(folder: Path, key: str, label: str, sha256: str) -> Sample:
    """The same one for every job of a sweep: paths take long to make."""
    return Sample(Path(folder, key), key, label, sha256)


def _bird_files(folder: Path, catalog: Catalog, *, strict: bool) -> tuple[dict[str, dict[str, list[Sample]]], tuple[BadImage, ...]]:
    """Files by role and class, in the order they were drawn, and those that are not what they were."""
    pools: dict[str, dict[str, list[Sample]]] = {role: {id: [] for id in catalog.ids} for role in ("support", "test", "calibration")}
    bad: list[BadImage] = []
    root = str(folder)
    for key, row in sorted(read_json(folder / "manifest.json")["files"].items()):
        if file_size(f"{root}/{key}") == row["bytes"]:
            pools[row["role"]][row["label"]].append(_drawn(folder, key, row["label"], row["sha256"]))
        else:
            bad.append(BadImage(key, f"is not the file that was drawn; delete {folder} to draw it again"))
    if bad and strict:
        raise DatasetError(f"{folder / bad[0].key} {bad[0].reason}")
    return pools, tuple(bad)
