"""Parquet files with a column of images and one of labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.data.datasets import Dataset
from fgvr.data.streams.formats import Fault, Shard, find_shards
from fgvr.data.streams.opening import open_stream
from fgvr.data.streams.table import Table
from fgvr.utils.paths import user_path

_AT_ONCE = 64  # rows decoded from a file together


@dataclass(frozen=True, slots=True)
class Parquet(Table):
    """Each file is a shard."""

    def shards(self) -> Iterator[Shard | Fault]:
        return find_shards(self.root, (".parquet",))

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        import pyarrow as pa

        return pa.ArrowException, OSError

    def columns(self, path: Path) -> tuple[Sequence[str], Sequence[str]]:
        schema = _open(path).schema_arrow
        return schema.names, class_names(schema.metadata, self.label)

    def cells(self, path: Path, columns: Sequence[str], start: int = 0) -> Iterator[tuple[Any, ...]]:
        file, first = _open(path), 0
        groups = list(range(file.num_row_groups))
        while groups and start >= first + (size := file.metadata.row_group(groups[0]).num_rows):
            first += size
            groups.pop(0)
        for batch in file.iter_batches(_AT_ONCE, columns=columns, row_groups=groups) if groups else ():
            held = [batch.column(name) for name in columns]
            for row in range(max(0, start - first), batch.num_rows):
                yield tuple(column[row].as_py() for column in held)
            first += batch.num_rows


def class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> list[str]:
    """As Hugging Face writes them beside the columns; [] where nobody did."""
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"][label].get("names") or []
    except (KeyError, ValueError, TypeError, AttributeError):
        return []


def _open(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def open_parquet(*, root: str, image: str = "image", label: str | None = "label", **settings: Any) -> Dataset:
    """Files in a folder, one file, or a pattern; `settings`: those of `open_stream`."""
    return open_stream(Parquet(user_path(root).absolute(), image, label), **settings)
