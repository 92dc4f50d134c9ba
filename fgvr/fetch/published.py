"""Published data sets from where their publishers serve them: addresses and hashes in published.toml, unpacked into the data set's root."""

import os
import shutil
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fgvr.errors import DatasetError, StoreError
from fgvr.fetch.download import RemoteFile, announced_size, download, part_of
from fgvr.utils.text import format_bytes

ARCHIVES = (".tgz", ".tar.gz", ".tar", ".zip")
DOWNLOADS = ".downloads"  # below the root, until everything is unpacked


@dataclass(frozen=True, slots=True)
class Published:
    """`licence`: what the publisher allows, in one line. No files: the publisher serves none to a program (`ask` says where to ask)."""

    licence: str
    files: tuple[RemoteFile, ...] = ()
    ask: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """What fetching would do. `size`: bytes still to come; None when a server does not say."""

    title: str
    files: tuple[str, ...]
    size: int | None
    licence: str
    destination: Path


@lru_cache(maxsize=1)
def published() -> Mapping[str, Published]:
    rows = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        name: Published(row["licence"], tuple(RemoteFile(**file) for file in row.get("files", ())), row.get("ask", ""))
        for name, row in rows.items()
    }


def remote_files(name: str, mirror: str | None = None) -> Published:
    """Where a published data set comes from; `mirror`: a server that has the same files under the same names.

    Raises DatasetError for one that no program can get: it says where to ask.
    """
    known = published()[name]
    if not known.files:
        raise DatasetError(f"dataset={name} cannot be fetched by a program: {known.ask}")
    if mirror is None:
        return known
    return replace(known, files=tuple(replace(file, url=f"{mirror.rstrip('/')}/{file.name}") for file in known.files))


def plan_benchmark(known: Published, title: str, root: Path) -> Download:
    """What `fetch_benchmark` would bring. Asks the servers for sizes and the disk for room.

    Raises StoreError where the disk is too small for the archives and what is in them.
    """
    folder = root / DOWNLOADS
    sizes = [announced_size(file) for file in known.files]
    missing = [_missing(folder, file, size) for file, size in zip(known.files, sizes, strict=True)]
    size = sum(filter(None, missing)) if None not in missing else None
    # Photographs do not shrink in an archive: unpacked they take what the archives take.
    check_room(f"{title} while it is unpacked", root, sum(filter(None, missing)) + sum(filter(None, sizes)), "paths.data")
    return Download(title, tuple(file.url for file in known.files), size, known.licence, root)


def fetch_benchmark(known: Published, root: Path) -> None:
    """Download, verify, unpack into `root`. The root holds whole archives only; downloads are removed once unpacked."""
    folder = root / DOWNLOADS
    for file in known.files:
        _unpack(download(file, folder / file.name), root, file.inner)
    shutil.rmtree(folder)


def _missing(folder: Path, file: RemoteFile, size: int | None) -> int | None:
    if (folder / file.name).exists():
        return 0
    part = part_of(folder / file.name)
    return None if size is None else size - (part.stat().st_size if part.exists() else 0)


def check_room(what: str, folder: Path, needed: int, setting: str) -> None:
    """Raises StoreError where the disk of the folder, which need not exist yet, is too small."""
    there, free = free_room(folder)
    if needed > free:
        raise StoreError(
            f"{what} needs {format_bytes(needed)}, and {there} has {format_bytes(free)} free: make room, or set {setting} to a larger disk"
        )


def free_room(folder: Path) -> tuple[Path, int]:
    """The nearest folder that exists, and the free bytes of its disk."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return there, shutil.disk_usage(there).free


def _unpack(archive: Path, root: Path, inner: str) -> None:
    """Everything is unpacked beside the root's content, then moved in: a stopped attempt leaves nothing that looks whole."""
    if not archive.name.endswith(ARCHIVES):
        shutil.copyfile(archive, root / f".{archive.name}.tmp")
        os.replace(root / f".{archive.name}.tmp", root / archive.name)
        return
    staging = archive.parent / "unpacked"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _extract(archive, staging)
        if inner:
            _extract(staging / inner, (staging / inner).parent)
            (staging / inner).unlink()
    except (OSError, tarfile.TarError, zipfile.BadZipFile, KeyError) as error:
        raise DatasetError(f"{archive} cannot be unpacked ({error})") from error
    shutil.copytree(staging, root, dirs_exist_ok=True, copy_function=os.replace)
    shutil.rmtree(staging)


def _extract(archive: Path, folder: Path) -> None:
    """tar without links or paths that lead outside (PEP 706); zipfile drops such paths itself."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        return
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
