"""Hugging Face data sets of this machine, read row by row: a folder that `datasets` knows how to read, or one that it saved."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from fgvr.data.datasets import Dataset
from fgvr.data.streams.formats import Fault, ForwardReader, Row, Shard, part_of
from fgvr.data.streams.opening import open_stream
from fgvr.data.streams.parquet import bytes_or_nothing, to_row
from fgvr.errors import ConfigError, DatasetError, ImageError
from fgvr.utils.paths import user_path


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """`image`, `label`: names of columns; no label: there are none. Each split is a shard."""

    root: Path
    image: str = "image"
    label: str | None = "label"

    def shards(self) -> Iterator[Shard | Fault]:
        files = sorted(file for file in self.root.rglob("*") if file.is_file() and not file.name.startswith("."))
        stamps = "-".join(str(sum(values)) for values in zip(*((f.stat().st_size, f.stat().st_mtime_ns) for f in files), strict=True))
        for name in _splits(self.root):
            yield Shard(name, self.root / name, part_of(name), stamps)

    def rows(self, shard: Shard) -> Iterator[Row | Fault]:
        rows = _splits(self.root)[shard.name]
        wanted = [self.image, *([self.label] if self.label else [])]
        if absent := [name for name in wanted if name not in rows.features]:
            raise DatasetError(
                f"{self.root}, split {shard.name}, has no column {' and no column '.join(absent)}; it has {', '.join(rows.features)}: "
                "set dataset.image and dataset.label"
            )
        names: list[str] = list(getattr(rows.features[self.label], "names", None) or ()) if self.label else []
        place = 0
        try:
            for row in rows:
                label = row[self.label] if self.label else None
                yield to_row(place, row[self.image], self.root, label, names, labelled=self.label is not None)
                place += 1
        except Exception as error:  # each builder of `datasets` has errors of its own
            yield Fault("", f"ends early or is damaged after {place:,} images ({_first_line(error)}); fetch it again")

    def read(self, path: Path, place: int, size: int) -> bytes:
        try:
            return _reader(self.root, path.name, self.image)(place)
        except Exception as error:
            raise ImageError(f"{path}, row {place:,}: cannot be read ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@lru_cache(maxsize=2)
def _splits(root: Path) -> dict[str, Any]:
    """The rows of each split; images stay as they are stored. Raises DatasetError, ConfigError."""
    if not root.exists():
        raise DatasetError(
            f"{root} is not on this machine, and dataset=hf downloads nothing: fetch it once, as with `hf download --repo-type dataset "
            "OWNER/NAME --local-dir FOLDER`, then set dataset.root=FOLDER"
        )
    if find_spec("datasets") is None:
        raise ConfigError("dataset=hf needs the package datasets: pip install 'fgvr[streams]'")
    import datasets

    try:
        if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
            found = datasets.load_from_disk(str(root))
        else:
            found = datasets.load_dataset(str(root), streaming=True)
    except Exception as error:
        raise DatasetError(f"{root} is no data set that Hugging Face's datasets can read: {_first_line(error)}") from error
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    return {str(name): _stored(rows) for name, rows in splits.items()}


def _stored(rows: Any) -> Any:
    """The same rows with images as bytes instead of decoded."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows.with_format(None)  # a saved data set may say that its rows are tensors


def _images(root: Path, split: str, column: str, start: int) -> Iterator[bytes]:
    rows = _splits(root)[split]
    rest = rows.skip(start) if hasattr(rows, "skip") else islice(rows, start, None)
    return (bytes_or_nothing(row[column], root) for row in rest)


@lru_cache(maxsize=4)
def _reader(root: Path, split: str, column: str) -> ForwardReader:
    return ForwardReader(partial(_images, root, split, column))


atexit.register(_reader.cache_clear)  # a half-read generator of `datasets` complains when it ends after the modules it needs


def open_hf(*, root: str, image: str = "image", label: str | None = "label", **settings: Any) -> Dataset:
    """A folder on this machine; `settings`: those of `open_stream`."""
    return open_stream(HuggingFace(user_path(root).absolute(), image, label), root=user_path(root).absolute(), **settings)
