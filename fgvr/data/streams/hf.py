"""Hugging Face data sets of this machine, read row by row: a folder that `datasets` knows how to read, or one that it saved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from fgvr.data.datasets import Dataset
from fgvr.data.streams.formats import Fault, Shard, part_of
from fgvr.data.streams.opening import open_stream
from fgvr.data.streams.table import Table, first_line
from fgvr.errors import ConfigError, DatasetError
from fgvr.utils.paths import user_path


@dataclass(frozen=True, slots=True)
class HuggingFace(Table):
    """Each split is a shard."""

    def shards(self) -> Iterator[Shard | Fault]:
        files = sorted(file for file in self.root.rglob("*") if file.is_file() and not file.name.startswith("."))
        stamps = "-".join(str(sum(values)) for values in zip(*((f.stat().st_size, f.stat().st_mtime_ns) for f in files), strict=True))
        for name in _splits(self.root):
            yield Shard(name, self.root / name, part_of(name), stamps)

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        return (Exception,)  # each builder of `datasets` has errors of its own

    def columns(self, path: Path) -> tuple[Sequence[str], Sequence[str]]:
        features = _splits(self.root)[path.name].features
        return list(features), list(getattr(features.get(self.label), "names", None) or ())

    def cells(self, path: Path, columns: Sequence[str], start: int = 0) -> Iterator[tuple[Any, ...]]:
        rows = _splits(self.root)[path.name]
        rest = rows.skip(start) if start and hasattr(rows, "skip") else islice(rows, start, None)
        return (tuple(row[name] for name in columns) for row in rest)


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
        raise DatasetError(f"{root} is no data set that Hugging Face's datasets can read: {first_line(error)}") from error
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    return {str(name): _stored(rows) for name, rows in splits.items()}


def _stored(rows: Any) -> Any:
    """The same rows with images as bytes instead of decoded."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows.with_format(None)  # a saved data set may say that its rows are tensors


def open_hf(*, root: str, image: str = "image", label: str | None = "label", **settings: Any) -> Dataset:
    """A folder on this machine; `settings`: those of `open_stream`."""
    return open_stream(HuggingFace(user_path(root).absolute(), image, label), **settings)
