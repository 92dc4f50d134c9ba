"""What a picture looks like, in 1376 bytes, and which pictures look the same: copies that were re-encoded or resized.

Three stages, each too weak alone: the gradient signs of a 16 x 16 grey picture (dHash, 256 bits, Hamming distance <= 64), the correlation
of 16 x 16 RGB thumbnails (>= .955), and the greatest difference anywhere between 24 x 24 grey thumbnails of equal contrast (<= .44 standard
deviations): two birds that differ in an eye ring correlate by .997, but they differ in one spot, while encoding spreads its errors.
Found are re-encoded and resized copies. Not found, and not looked for: mirror images, and crops that cut off more than about 5 %. A picture
without structure (one plain colour) has no look and is known by its content only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from fgvr.errors import ImageError
from fgvr.protocols import Cache
from fgvr.types import Sample
from fgvr.utils.images import read_image
from fgvr.utils.progress import track

BITS, CORRELATION, SPOT = 64, 0.955, 0.44
"""Near copies differ in at most so many bits, correlate at least so well, and differ nowhere by more standard deviations."""
_SIDE, _FINE = 16, 24
_PLAIN = 2.0  # standard deviation of the grey picture, of 255, below which there is nothing to compare
_BLOCK = 4_000_000  # pairs compared at once
_VERSION = "look-1"  # rises whenever a look could change


def look(image: Image.Image) -> bytes:
    """32 bytes of gradient signs, 768 of an RGB thumbnail, 576 of a finer grey one; b"" for a picture without structure."""
    rgb = image.convert("RGB")
    grey = rgb.convert("L")
    small = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS), np.int16)
    if small.std() < _PLAIN:
        return b""
    signs = np.packbits(small[:, 1:] > small[:, :-1]).tobytes()
    thumbnail = rgb.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return signs + thumbnail.tobytes() + grey.resize((_FINE, _FINE), Image.Resampling.BICUBIC).tobytes()


class Looks:
    """Looks of samples, remembered by content in a cache: each picture is decoded once."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def of(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        """Content hash -> look. Samples without a hash, plain ones and those that cannot be read are not in it."""
        wanted = {sample.sha256: sample for sample in samples if sample.sha256}
        known = dict(self._cache.get(map(_key, wanted)))
        missing = [sample for sha256, sample in wanted.items() if _key(sha256) not in known]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="fgvr-look") as threads:
            for start in range(0, len(missing), 1000):  # what is looked at before an interruption is kept
                some = missing[start : start + 1000]
                found = zip(some, track(threads.map(_look, some), "looking for copies", len(some)), strict=True)
                fresh = {_key(sample.sha256): seen for sample, seen in found if seen is not None}
                self._cache.put(fresh)
                known |= fresh
        return {sha256: value for sha256 in wanted if (value := known.get(_key(sha256)))}


class Album:
    """Looks to compare others with; prepared once."""

    def __init__(self, looks: Mapping[str, bytes]) -> None:
        """Args: looks: by content hash."""
        self._ids = list(looks)
        self._signs, self._thumbnails, self._fine = _arrays(list(looks.values())) if looks else (np.zeros((0, 4), np.uint64),) * 3

    def near(self, looks: Mapping[str, bytes]) -> dict[str, str]:
        """Content hash of each look that resembles one of the album -> the one it resembles most. The same content is no near copy."""
        best: dict[str, tuple[float, str]] = {}
        for one, other, correlation in self.pairs(looks):
            best[one] = max(best.get(one, (0.0, "")), (correlation, other))
        return {one: other for one, (_, other) in best.items()}

    def pairs(self, looks: Mapping[str, bytes]) -> Iterator[tuple[str, str, float]]:
        """Every (look, look of the album, correlation) that resemble each other; never the same content."""
        if not looks or not self._ids:
            return
        ids, others = list(looks), self._ids
        signs, thumbnails, fine = _arrays(list(looks.values()))
        step = max(1, _BLOCK // len(others))
        for start in range(0, len(ids), step):
            distance = np.zeros((len(signs[start : start + step]), len(others)), np.uint16)
            for word in range(signs.shape[1]):
                distance += np.bitwise_count(signs[start : start + step, word, None] ^ self._signs[None, :, word])
            rows, columns = np.nonzero(distance <= BITS)
            for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
                correlation = float(thumbnails[row] @ self._thumbnails[column])
                if correlation < CORRELATION or ids[row] == others[column]:
                    continue
                if np.abs(fine[row] - self._fine[column]).max() <= SPOT:
                    yield ids[row], others[column], correlation


def near(these: Mapping[str, bytes], those: Mapping[str, bytes]) -> dict[str, str]:
    """Content hash of each of `these` that looks like one of `those` -> the one it resembles most."""
    return Album(those).near(these)


def families(samples: Sequence[Sample], looks: Looks) -> list[int]:
    """Of each sample the place of the first one of its class that it is a copy of (exact or near, or a copy of a copy); mostly its own."""
    places: dict[tuple[str | None, str], list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault((sample.label, sample.sha256 or f"unknown {i}"), []).append(i)
    seen, labels = looks.of(samples), {sample.label for sample in samples}
    first = list(range(len(samples)))

    def root(i: int) -> int:
        while first[i] != i:
            i = first[i]
        return i

    def join(a: int, b: int) -> None:
        low, high = sorted((root(a), root(b)))
        first[high] = low

    for same in places.values():
        for i in same[1:]:
            join(same[0], i)
    for one, other, _ in Album(seen).pairs(seen):
        for label in labels:
            if (label, one) in places and (label, other) in places:
                join(places[label, one][0], places[label, other][0])
    return [root(i) for i in range(len(samples))]


def _arrays(looks: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 4) uint64 signs; (n, 768) float32 thumbnails with mean 0 and length 1; (n, 576) grey ones with mean 0 and deviation 1."""
    table = np.frombuffer(b"".join(looks), np.uint8).reshape(len(looks), -1)
    size = _SIDE * _SIDE // 8
    thumbnails, fine = _centred(table[:, size : size * (1 + 8 * 3)]), _centred(table[:, size * (1 + 8 * 3) :])
    return np.ascontiguousarray(table[:, :size]).view(np.uint64), thumbnails, fine * _FINE


def _centred(rows: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and length 1; rows without any variation stay 0."""
    rows = rows.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _look(sample: Sample) -> bytes | None:
    """None where the picture cannot be read: whoever needs its content will say so."""
    try:
        return look(read_image(sample.image)[0])
    except ImageError:
        return None


def _key(sha256: str) -> str:
    return f"{_VERSION}:{sha256}"
