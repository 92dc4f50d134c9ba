"""WebDataset: tar files in which the members of one row share their name up to the first dot (`0001.jpg`, `0001.cls`)."""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.data.datasets import Dataset
from fgvr.data.streams.formats import Fault, Row, Shard, find_shards, label_of
from fgvr.data.streams.opening import open_stream
from fgvr.errors import ImageError
from fgvr.utils.images import IMAGE_SUFFIXES
from fgvr.utils.paths import user_path


@dataclass(frozen=True, slots=True)
class WebDataset:
    """`label`: the suffix of the member that says the class; `json:KEY` an entry of a JSON member; None: there are no labels."""

    root: Path
    label: str | None = "cls"

    def shards(self) -> Iterator[Shard | Fault]:
        return find_shards(self.root, (".tar",))

    def rows(self, shard: Shard) -> Iterator[Row | Fault]:
        rows, group = 0, dict[str, tuple[int, int, bytes]]()
        base = ""
        try:
            with tarfile.open(shard.path, "r:") as archive:
                for member in archive:
                    archive.members.clear()  # type: ignore[attr-defined]  # else it remembers all it has seen
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if not member.isfile() or not suffix or stem.startswith("."):
                        continue
                    if folder + slash + stem != base:
                        if base:
                            rows += 1
                            yield self._row(base, group)
                        base, group = folder + slash + stem, {}
                    suffix = suffix.lower()
                    if suffix == self._label_suffix or f".{suffix}" in IMAGE_SUFFIXES:
                        file = archive.extractfile(member)
                        group[suffix] = member.offset_data, member.size, file.read() if file else b""
            damage = "" if _has_end(shard.path) else "no end mark"
        except (tarfile.TarError, OSError, EOFError) as error:
            damage = str(error)
        if base and (not damage or self._whole(group)):
            rows += 1
            yield self._row(base, group)
        if damage:
            yield Fault("", f"ends early or is damaged after {rows:,} images ({damage}); fetch it again")

    def read(self, path: Path, place: int, size: int) -> bytes:
        try:
            with open(path, "rb") as file:
                file.seek(place)
                return file.read(size)
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error

    @property
    def _label_suffix(self) -> str:
        return (self.label or "").partition(":")[0]

    def _whole(self, group: dict[str, tuple[int, int, bytes]]) -> bool:
        """Whether nothing can follow that this row would need."""
        complete = _image(group) is not None and (self.label is None or self._label_suffix in group)
        return complete and all(len(data) == size for _, size, data in group.values())

    def _row(self, key: str, group: dict[str, tuple[int, int, bytes]]) -> Row | Fault:
        if (image := _image(group)) is None:
            return Fault(key, "has no image")
        place, size, data = group[image]
        if len(data) < size or not data:
            return Fault(key, f"its image is empty or cut off ({len(data):,} of {size:,} bytes)")
        if self.label is None:
            return Row(key, None, data, place, size)
        if self._label_suffix not in group:
            return Fault(key, f"has no label: no member .{self._label_suffix}")
        label = self._read_label(group[self._label_suffix][2])
        if label is None:
            return Fault(key, f"has no label: dataset.label={self.label} is neither text nor a whole number")
        if not label:
            return Fault(key, f"its label (dataset.label={self.label}) is empty, below 0 or unreadable")
        return Row(key, label, data, place, size)

    def _read_label(self, data: bytes) -> str | None:
        """Empty where nothing can be read; None where it is no label."""
        try:
            text = data.decode()
            name = (self.label or "").partition(":")[2]
            return label_of(json.loads(text)[name] if name else text)
        except (ValueError, KeyError, TypeError):
            return ""


def _image(group: dict[str, tuple[int, int, bytes]]) -> str | None:
    return next((suffix for suffix in group if f".{suffix}" in IMAGE_SUFFIXES), None)


def _has_end(path: Path) -> bool:
    """Whether the file ends with the empty block that closes an archive: one cut off between two members reads like a whole one."""
    with open(path, "rb") as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return not any(file.read())


def open_webdataset(*, root: str, label: str | None = "cls", **settings: Any) -> Dataset:
    """Shards in a folder, one shard, or a pattern such as `shards/train-{000..127}.tar`; `settings`: those of `open_stream`."""
    return open_stream(WebDataset(user_path(root).absolute(), label), **settings)
