"""Tables with a column of images and one of labels: what Parquet files and Hugging Face data sets have in common."""

import atexit
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fgvr.data.streams.formats import Fault, ForwardReader, Row, Shard, label_of
from fgvr.errors import DatasetError, FgvrError, ImageError


@dataclass(frozen=True, slots=True)
class Table(ABC):
    """`image`, `label`: names of columns; no label: there are none.

    An image is bytes, a path, or `{bytes, path}` as Hugging Face writes it.
    """

    root: Path
    image: str = "image"
    label: str | None = "label"

    @property
    @abstractmethod
    def failures(self) -> tuple[type[Exception], ...]:
        """What reading a damaged table raises."""

    @abstractmethod
    def columns(self, path: Path) -> tuple[Sequence[str], Sequence[str]]:
        """The names of the columns, and those of the classes where labels are numbers."""

    @abstractmethod
    def cells(self, path: Path, columns: Sequence[str], start: int = 0) -> Iterator[tuple[Any, ...]]:
        """These columns of each row from `start` on."""

    def rows(self, shard: Shard) -> Iterator[Row | Fault]:
        wanted = [self.image, *([self.label] if self.label else [])]
        place = 0
        try:
            known, classes = self.columns(shard.path)
            if absent := [name for name in wanted if name not in known]:
                where = shard.path if shard.path.exists() else f"{self.root}, split {shard.name},"
                raise DatasetError(
                    f"{where} has no column {' and no column '.join(absent)}; it has {', '.join(known)}: "
                    "set dataset.image and dataset.label"
                )
            for image, *label in self.cells(shard.path, wanted):
                yield self._row(f"row {place:09d}", place, image, shard.path.parent, label, classes)
                place += 1
        except FgvrError:
            raise
        except self.failures as error:
            yield Fault("", f"ends early or is damaged after {place:,} images ({first_line(error)}); fetch it again")

    def read(self, path: Path, place: int, size: int) -> bytes:
        try:
            return _reader(self, path, path.stat().st_mtime_ns if path.exists() else 0)(place)
        except (IndexError, OSError, ValueError, *self.failures) as error:
            raise ImageError(f"{path}, row {place:,}: cannot be read ({first_line(error)})") from error

    def _row(self, key: str, place: int, image: Any, folder: Path, label: Sequence[Any], classes: Sequence[str]) -> Row | Fault:
        """Keys are in the order of their rows."""
        try:
            data = _image_bytes(image, folder)
        except OSError as error:
            return Fault(key, f"its image cannot be read ({error.strerror or error})")
        if not data:
            return Fault(key, "has no image")
        if not label:
            return Row(key, None, data, place)
        name = label_of(label[0])
        if name is None:
            return Fault(key, f"has a label that is neither text nor a whole number: {str(label[0])[:40]}")
        if not name:
            return Fault(key, "has no label")
        if classes and isinstance(label[0], int):
            if label[0] >= len(classes):
                return Fault(key, f"has a label beyond the {len(classes)} classes: {label[0]}")
            name = classes[label[0]]
        return Row(key, name, data, place)


def _image_bytes(value: Any, folder: Path) -> bytes:
    """Of a cell: bytes, a path below `folder`, or a record of both. Raises OSError."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return (folder / value).read_bytes()
    if isinstance(value, bytes | None):
        return value or b""
    raise OSError(f"{type(value).__name__} instead of bytes or a path")


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@lru_cache(maxsize=4)
def _reader(table: Table, path: Path, changed: int) -> ForwardReader:
    def images(start: int) -> Iterator[bytes]:
        for (image,) in table.cells(path, [table.image], start):
            try:
                yield _image_bytes(image, path.parent)
            except OSError:  # whoever reads past it wants other rows
                yield b""

    return ForwardReader(images)


atexit.register(_reader.cache_clear)  # a half-read generator of `datasets` complains when it ends after the modules it needs
