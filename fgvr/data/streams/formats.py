"""What a format of a stream answers: its shards, the rows of each, and the bytes of one row's image."""

import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fgvr.data.catalog import SUPPORT_NAMES, TEST_NAMES, VALIDATION_NAMES
from fgvr.errors import DatasetError

_NEAR = 128  # rows that were read in advance and are kept for threads that ask in another order
_FEW, _BYTES = 16, 32 << 20  # so many of them where all together have more bytes


@dataclass(frozen=True, slots=True)
class Shard:
    """One file, or one split of a data set that is not made of files. `stamp`: another one where its content may have changed."""

    name: str
    path: Path
    part: str = ""  # support, validation or test; empty: the stream itself makes no split
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An image in a shard. `place` and `size`: where its bytes lie, as the format counts."""

    key: str
    label: str | None
    data: bytes
    place: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What is no usable row, and why. No key: the shard itself, from here on."""

    key: str
    reason: str


def label_of(value: object) -> str | None:
    """The class that a cell or a member names, by text or by a whole number; None for what is no label, such as True, 1.5 or a list.

    Empty where it names none: nothing, NaN, or a number below 0, which is how Hugging Face writes "not known".
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).strip()
    return "" if text.startswith("-") and text[1:].isdecimal() else text


class Format(Protocol):
    """A frozen record, small enough to travel with each image to another process."""

    @property
    def root(self) -> Path: ...

    def shards(self) -> Iterator[Shard | Fault]:
        """In their order. Raises DatasetError where there is none."""
        ...

    def rows(self, shard: Shard) -> Iterator[Row | Fault]:
        """In their order, the same each time."""
        ...

    def read(self, path: Path, place: int, size: int) -> bytes: ...


def find_shards(root: Path, suffixes: tuple[str, ...]) -> Iterator[Shard | Fault]:
    """The files below a folder, one file, or those that a pattern such as `train-{000..127}.tar` names; what is missing is a Fault."""
    if "{" in root.name and not root.exists():
        files, root = [root.parent / name for name in _expanded(root.name)], root.parent
    elif root.is_dir():
        found = (file for suffix in suffixes for file in root.rglob(f"*{suffix}"))
        files = sorted(file for file in found if not file.name.startswith(".") and not file.is_dir())
    else:
        files, root = [root], root.parent
    if not any(file.is_file() for file in files):
        raise DatasetError(f"{root} has no {' or '.join(suffixes)} files; set dataset.root to a folder of shards, or to one shard")
    for file in files:
        name = os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")  # such as can be written anywhere
        if file.is_file():
            status = file.stat()
            yield Shard(name, file, part_of(name), f"{status.st_size}-{status.st_mtime_ns}")
        else:
            yield Fault(name, "is not there; fetch it again")


def _expanded(pattern: str) -> Iterator[str]:
    """Each name that `{first..last}` stands for; numbers keep their leading zeros."""
    found = re.fullmatch(r"(.*?)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if found is None:
        if "{" in pattern:
            raise DatasetError(f"{pattern} is no pattern of shards; write one such as train-{{000..127}}.tar")
        yield pattern
        return
    before, first, last, after = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{before}{number:0{len(first)}d}{after}")


def part_of(name: str) -> str:
    """Which part of a split a shard is of, by the words of its path: `train/0001.tar`, `imagenet-validation-00.parquet`."""
    words = name.lower().replace("/", "-").replace("_", "-").replace(".", "-").split("-")
    kinds = (("support", SUPPORT_NAMES), ("validation", VALIDATION_NAMES), ("test", TEST_NAMES))
    return next((part for part, names in kinds if any(word in names for word in words)), "")


class ForwardReader:
    """Rows of a source that can only be read forwards, by number. Asking for one that lies behind begins anew there."""

    def __init__(self, start: Callable[[int], Iterator[bytes]]) -> None:
        """Args: start: the images from a row on; empty ones where none can be read."""
        self._start = start
        self._turn = threading.Lock()
        self._near: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._rest = -1, iter(())  # nothing is begun

    def __call__(self, place: int) -> bytes:
        """Raises IndexError where there is no such row, OSError where its image cannot be read."""
        with self._turn:
            ahead = 0 <= self._next <= place < self._next + 16 * _NEAR
            if place not in self._near and not ahead:
                self._near.clear()
                self._next, self._rest = place, self._start(place)
            while place not in self._near:
                try:
                    self._near[self._next] = next(self._rest)
                except StopIteration:
                    self._next = -1  # an iterator that has ended or broken gives nothing more: the next row begins anew
                    raise IndexError(place) from None
                except Exception:
                    self._next = -1
                    raise
                self._next += 1
                while len(self._near) > (_NEAR if sum(map(len, self._near.values())) <= _BYTES else _FEW):
                    self._near.popitem(last=False)
            if not self._near[place]:
                del self._near[place]  # asked for again, it is tried again
                raise OSError("its image cannot be read")
            return self._near[place]
