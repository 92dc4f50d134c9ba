"""Images of a stream as samples: made when they are asked for, and read where they lie."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fgvr.data.streams.formats import Format
from fgvr.data.streams.index import StreamIndex
from fgvr.types import Sample
from fgvr.utils.files import short_hash
from fgvr.utils.images import ImageSource, StoredImage
from fgvr.utils.lazy import LazySequence

_BLOCK = 256  # samples that are made together


@dataclass(frozen=True, slots=True)
class StreamImage(StoredImage):
    """An image in a shard, by reference: small, and of use in any process that sees the shard."""

    stream: Format
    path: Path
    name: str
    place: int
    size: int

    @property
    def file(self) -> Path:
        return self.path if self.path.exists() else self.path.parent  # of a data set of Hugging Face, the folder

    def read_bytes(self) -> bytes:
        """Raises ImageError."""
        return self.stream.read(self.path, self.place, self.size)

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"


class StreamSamples(LazySequence[Sample]):
    """Some rows of a stream, in its order. A row takes four bytes of memory."""

    def __init__(self, index: StreamIndex, stream: Format, ids: np.ndarray) -> None:
        """Args: ids: (n,) uint32, ascending."""
        super().__init__(len(ids), self._sample)
        self._index, self._stream, self._ids = index, stream, ids
        self._block: tuple[int, list[Sample]] = (-1, [])

    @cached_property
    def digest(self) -> str:
        """12 hex digits over keys, labels and contents, in order."""
        return short_hash([self._index.digest, sha256(self._ids.astype("<u4").tobytes()).hexdigest()])

    @property
    def pictures(self) -> Mapping[str, StreamImage]:
        """The images by key."""
        return _Pictures(self)

    def position(self, key: str) -> int:
        """Raises KeyError."""
        number = self._index.number(key)
        place = len(self._ids) if number is None else int(np.searchsorted(self._ids, number))
        if place == len(self._ids) or self._ids[place] != number:
            raise KeyError(key)
        return place

    def alike(self, used: Mapping[str, str]) -> list[Sample]:
        """Those whose content hash is among `used`."""
        found = np.array(sorted(self._index.among(used)), np.uint32)
        return self._samples(found[np.isin(found, self._ids, assume_unique=True)])

    def without(self, keys: set[str]) -> "StreamSamples":
        """All but those with these keys, which are among them."""
        gone = [self._ids[self.position(key)] for key in keys]
        return StreamSamples(self._index, self._stream, self._ids[~np.isin(self._ids, np.array(gone, np.uint32))])

    def _sample(self, i: int) -> Sample:
        start, block = self._block
        if not start <= i < start + len(block):
            start = i - i % _BLOCK
            block = self._samples(self._ids[start : start + _BLOCK])
            self._block = start, block  # one assignment: threads may ask at the same time
        return block[i - start]

    def _samples(self, ids: Sequence[int] | np.ndarray) -> list[Sample]:
        return [
            Sample(StreamImage(self._stream, Path(os.fsdecode(path)), key, place, size), f"{shard}/{key}", label, content)
            for shard, key, label, place, size, content, path in self._index.items([int(number) for number in ids])
        ]


class _Pictures(Mapping[str, StreamImage]):
    def __init__(self, samples: StreamSamples) -> None:
        self._samples = samples

    def __getitem__(self, key: str) -> StreamImage:
        image = self._samples[self._samples.position(key)].image
        assert isinstance(image, StreamImage)
        return image

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[str]:
        return (sample.key for sample in self._samples)


# --- of any samples, held in memory or not -----------------------------------------------------------------------------------


def position_of(samples: Sequence[Sample], key: str) -> int:
    """Raises KeyError."""
    if isinstance(samples, StreamSamples):
        return samples.position(key)
    for place, sample in enumerate(samples):
        if sample.key == key:
            return place
    raise KeyError(key)


def without(samples: Sequence[Sample], keys: set[str]) -> Sequence[Sample]:
    if isinstance(samples, StreamSamples):
        return samples.without(keys)
    return tuple(sample for sample in samples if sample.key not in keys)


def contents_of(samples: Sequence[Sample]) -> Any:
    """What tells these samples from others: keys, labels and contents, in order."""
    if isinstance(samples, StreamSamples):
        return samples.digest
    return [(sample.key, sample.label, sample.sha256) for sample in samples]


def pictures_of(samples: Sequence[Sample]) -> Mapping[str, ImageSource]:
    """The images by key."""
    return samples.pictures if isinstance(samples, StreamSamples) else {sample.key: sample.image for sample in samples}
