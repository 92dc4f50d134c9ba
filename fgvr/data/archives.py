"""What published archives are made of: lists, tables and MATLAB files below one root, read with errors that name file and line."""

import csv
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgvr.data.streams.formats import Fault, Shard
from fgvr.data.streams.parquet import Parquet
from fgvr.data.streams.table import first_line
from fgvr.errors import DatasetError
from fgvr.utils.files import file_lock, read_json, write_json
from fgvr.utils.images import IMAGE_SUFFIXES
from fgvr.utils.progress import track


@dataclass(frozen=True, slots=True)
class Row:
    """One image of an archive: its path below the root, its class, whether it is a test image, and where that was read."""

    key: str
    label: str
    test: bool
    where: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive says it holds.

    `classes` are (id, the archive's own name) in the official order; `official` is whether the archive makes a train/test split;
    `checksums` are md5 by key, where the archive brings them.
    """

    classes: list[tuple[str, str]]
    rows: list[Row]
    official: bool = True
    checksums: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Archive:
    """The extracted files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def first(self, *paths: str) -> str:
        """The first of these that is there; none: a DatasetError that names them."""
        for path in paths:
            if self.has(path):
                return path
        raise DatasetError(f"{self.root} lacks {' and '.join(paths[:1])}{' (or ' + ', '.join(paths[1:]) + ')' if paths[1:] else ''}")

    def lines(self, path: str) -> Iterator[tuple[str, str]]:
        """(where, text) of each line that is not empty, without blanks around it; line ends of any system."""
        return ((where, line.strip()) for where, line in self._lines(path))

    def _lines(self, path: str) -> Iterator[tuple[str, str]]:
        try:
            content = (self.root / path).read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise DatasetError(f"{self.root} lacks {path}") from None
        except (OSError, ValueError) as error:
            raise DatasetError(f"{self.root / path} cannot be read as text: {error}") from error
        return ((f"{path}, line {number}", line) for number, line in enumerate(content, 1) if line.strip())

    def words(self, path: str, count: int) -> Iterator[tuple[str, list[str]]]:
        """(where, words) of each line, cut into `count` words; a line with fewer is a DatasetError."""
        for where, line in self.lines(path):
            words = line.split(None, count - 1)
            if len(words) < count:
                raise DatasetError(f"{self.root}: {where}: {line!r} should have {count} words; extract the file again")
            yield where, words

    def pairs(self, path: str) -> dict[str, str]:
        """A two-column list as a dictionary; a first word that comes twice is a DatasetError."""
        found: dict[str, str] = {}
        for where, (key, value) in self.words(path, 2):
            if key in found:
                raise DatasetError(f"{self.root}: {where}: {key} is listed a second time")
            found[key] = value.strip()
        return found

    def table(self, path: str, *, delimiter: str = "\t") -> Iterator[tuple[str, dict[str, str]]]:
        """(where, row) of a table whose first line names its columns."""
        for where, line in self._cells(path, delimiter):
            if where.endswith(", line 1"):
                columns = line
            elif len(line) < len(columns):
                raise DatasetError(f"{self.root}: {where}: {len(line)} columns instead of {len(columns)}; extract the file again")
            else:
                yield where, dict(zip(columns, line, strict=False))

    def cells(self, path: str, count: int, *, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
        """(where, cells) of a table without a header; a line with fewer than `count` cells is a DatasetError."""
        for where, line in self._cells(path, delimiter):
            if len(line) < count:
                raise DatasetError(f"{self.root}: {where}: {len(line)} columns instead of {count}; extract the file again")
            yield where, line

    def _cells(self, path: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
        texts = list(self._lines(path))  # blanks stay: the last cells of a row may be empty
        lines = csv.reader((text for _, text in texts), delimiter=delimiter)
        return ((where, [cell.strip() for cell in line]) for (where, _), line in zip(texts, lines, strict=True))

    def json(self, path: str) -> Any:
        try:
            return json.loads((self.root / path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DatasetError(f"{self.root} lacks {path}") from None
        except (OSError, ValueError) as error:
            raise DatasetError(f"{self.root / path} cannot be read as JSON ({error}); extract it again") from error

    def mat(self, path: str, name: str) -> Any:
        """The variable `name` of a MATLAB file, without dimensions of size 1."""
        from scipy.io import loadmat

        try:
            return loadmat(self.root / path, squeeze_me=True, variable_names=[name])[name]
        except FileNotFoundError:
            raise DatasetError(f"{self.root} lacks {path}") from None
        except KeyError:
            raise DatasetError(f"{self.root / path} has no variable {name!r}; extract it again") from None
        except Exception as error:  # scipy raises whatever a damaged file makes it stumble over
            raise DatasetError(f"{self.root / path} cannot be read as a MATLAB file ({error}); extract it again") from error

    def folders(self, path: str = ".") -> list[str]:
        """Names of the folders in `path`, in the order of their names."""
        folder = self.root / path
        if not folder.is_dir():
            raise DatasetError(f"{self.root} lacks the folder {path}")
        return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))

    def images(self, path: str) -> list[str]:
        """Keys of the image files right in `path`, in the order of their names."""
        found = (f for f in (self.root / path).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
        return sorted(f.relative_to(self.root).as_posix() for f in found)


log = logging.getLogger(__name__)

FOLDER, INDEX = "unpacked", "index.json"


def read_parquet(archive: Archive) -> Contents:
    """`data/{train,test}-*.parquet` with the columns image (bytes) and label (from 0, its names in the file's own description).

    The pictures are written to `unpacked/` below the root the first time; it appears when it is whole. Classes count from 1.
    """
    if not archive.has(f"{FOLDER}/{INDEX}"):
        try:
            with file_lock(archive.root / f".{FOLDER}.lock"):
                if not archive.has(f"{FOLDER}/{INDEX}"):
                    _unpack(archive)
        except OSError as error:
            raise DatasetError(f"{archive.root}: its pictures must be unpacked beside the parquet files: {error}") from error
    index = read_json(archive.root / FOLDER / INDEX)
    rows = [
        Row(f"{FOLDER}/{file}", str(label + 1), file.startswith("test/"), f"{FOLDER}/{INDEX}, {file}") for file, label in index["files"]
    ]
    return Contents([(str(number), name) for number, name in enumerate(index["names"], 1)], rows)


def _unpack(archive: Archive) -> None:
    partial = archive.root / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    log.info("unpacking the pictures of %s, once", archive.root)
    files: list[tuple[str, int]] = []
    names: list[str] = []
    for part in ("train", "test"):
        (partial / part).mkdir(parents=True)
        found = sorted((archive.root / "data").glob(f"{part}-*.parquet"))
        if not found:
            raise DatasetError(f"{archive.root} lacks data/{part}-*.parquet")
        for path in found:
            table = Parquet(path)
            try:
                own = list(table.columns(path)[1])
            except table.failures as error:
                raise DatasetError(f"{path} is damaged ({first_line(error)}); fetch it again") from error
            names = names or own
            if not names:
                raise DatasetError(f"{path} does not say what its labels mean (no class names in its description); take another copy")
            places = {name if own else str(place): place for place, name in enumerate(names)}  # a later file may leave the names out
            for number, row in enumerate(track(table.rows(Shard(path.name, path)), path.name)):
                if isinstance(row, Fault):
                    raise DatasetError(f"{path}, row {number}: no picture in it that can be used: it {row.reason}")
                if (place := places.get(str(row.label))) is None:
                    raise DatasetError(f"{path}, row {number}: {row.label} is none of the {len(names)} classes of the first file")
                files.append((f"{part}/{len(files):06d}.jpg", place))
                (partial / files[-1][0]).write_bytes(row.data)
    write_json(partial / INDEX, {"schema": 1, "names": names, "files": files})
    partial.rename(archive.root / FOLDER)
