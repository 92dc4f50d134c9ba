"""Parquet files with a column of images (bytes, `{bytes, path}` as Hugging Face writes them, or paths) and one of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from fgvr.data.datasets import Dataset
from fgvr.data.streams.formats import Fault, ForwardReader, Row, Shard, find_shards, label_of
from fgvr.data.streams.opening import open_stream
from fgvr.errors import DatasetError, ImageError
from fgvr.utils.paths import user_path

_AT_ONCE = 64  # rows decoded from a file together


@dataclass(frozen=True, slots=True)
class Parquet:
    """`image`, `label`: names of columns; no label: there are none."""

    root: Path
    image: str = "image"
    label: str | None = "label"

    def shards(self) -> Iterator[Shard | Fault]:
        return find_shards(self.root, (".parquet",))

    def rows(self, shard: Shard) -> Iterator[Row | Fault]:
        import pyarrow as pa

        wanted = [self.image, *([self.label] if self.label else [])]
        place = 0
        try:
            file = _open(shard.path)
            if absent := [name for name in wanted if name not in file.schema_arrow.names]:
                raise DatasetError(
                    f"{shard.path} has no column {' and no column '.join(absent)}; it has {', '.join(file.schema_arrow.names)}: "
                    "set dataset.image and dataset.label"
                )
            names = _class_names(file.schema_arrow.metadata, self.label)
            for batch in file.iter_batches(_AT_ONCE, columns=wanted):
                labels = batch.column(self.label).to_pylist() if self.label else [None] * batch.num_rows
                for image, label in zip(batch.column(self.image).to_pylist(), labels, strict=True):
                    yield to_row(place, image, shard.path.parent, label, names, labelled=self.label is not None)
                    place += 1
        except (pa.ArrowException, OSError) as error:
            yield Fault("", f"ends early or is damaged after {place:,} images ({str(error).splitlines()[0]}); fetch it again")

    def read(self, path: Path, place: int, size: int) -> bytes:
        try:
            return _reader(path, self.image, path.stat().st_mtime_ns)(place)
        except (IndexError, OSError, ValueError) as error:
            raise ImageError(f"{path}, row {place:,}: cannot be read ({error})") from error


def to_row(place: int, image: Any, folder: Path, label: Any, names: list[str], *, labelled: bool) -> Row | Fault:
    """A row of a table; keys are in the order of their rows. `names`: of the classes that numbers mean."""
    key = f"row {place:09d}"
    try:
        data = image_bytes(image, folder)
    except OSError as error:
        return Fault(key, f"its image cannot be read ({error.strerror or error})")
    if not data:
        return Fault(key, "has no image")
    if not labelled:
        return Row(key, None, data, place)
    name = label_of(label)
    if name is None:
        return Fault(key, f"has a label that is neither text nor a whole number: {str(label)[:40]}")
    if not name:
        return Fault(key, "has no label")
    if names and isinstance(label, int):
        if label >= len(names):
            return Fault(key, f"has a label beyond the {len(names)} classes: {label}")
        name = names[label]
    return Row(key, name, data, place)


def image_bytes(value: Any, folder: Path) -> bytes:
    """Of a cell: bytes, a path below `folder`, or a record of both. Raises OSError."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return (folder / value).read_bytes()
    if isinstance(value, bytes | None):
        return value or b""
    raise OSError(f"{type(value).__name__} instead of bytes or a path")


def bytes_or_nothing(value: Any, folder: Path) -> bytes:
    """Of a cell; b"" where they cannot be read: those who read past it want other rows."""
    try:
        return image_bytes(value, folder)
    except OSError:
        return b""


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> list[str]:
    """As Hugging Face writes them beside the columns; [] where nobody did."""
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"][label].get("names") or []
    except (KeyError, ValueError, TypeError, AttributeError):
        return []


def _open(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def _images(path: Path, column: str, start: int) -> Iterator[bytes]:
    """From row `start` on."""
    file, first = _open(path), 0
    groups = list(range(file.num_row_groups))
    while groups and start >= first + (size := file.metadata.row_group(groups[0]).num_rows):
        first += size
        groups.pop(0)
    for batch in file.iter_batches(_AT_ONCE, columns=[column], row_groups=groups) if groups else ():
        for value in batch.column(column)[max(0, start - first) :]:
            yield bytes_or_nothing(value.as_py(), path.parent)
        first += batch.num_rows


@lru_cache(maxsize=4)
def _reader(path: Path, column: str, changed: int) -> ForwardReader:
    return ForwardReader(partial(_images, path, column))


def open_parquet(*, root: str, image: str = "image", label: str | None = "label", **settings: Any) -> Dataset:
    """Files in a folder, one file, or a pattern; `settings`: those of `open_stream`."""
    return open_stream(Parquet(user_path(root).absolute(), image, label), root=user_path(root).absolute(), **settings)
