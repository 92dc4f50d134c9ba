"""Which stream lies at a path, without labels: for `mode=classify image=SHARDS`."""

from __future__ import annotations

from pathlib import Path

from fgvr.data.streams.formats import Format
from fgvr.data.streams.parquet import Parquet
from fgvr.data.streams.webdataset import WebDataset


def stream_at(path: Path) -> Format | None:
    """Shards of one kind: a file, a pattern, or a folder that holds nothing else. None: images lie there, or nothing."""
    files = [file for file in path.iterdir() if not file.name.startswith(".")] if path.is_dir() else [path] if path.suffix else []
    suffixes = {file.suffix for file in files if file.name != "classnames.txt"}
    if suffixes == {".tar"}:
        return WebDataset(path, label=None)
    return Parquet(path, label=None) if suffixes == {".parquet"} else None
