"""Near-duplicate images, found by perceptual hashes of 1376 bytes: re-encoded and resized copies of the same picture.

Three tests, each too weak alone: the gradient signs of a 16 x 16 grey thumbnail (dHash, 256 bits, Hamming distance <= 64), the correlation
of 16 x 16 RGB thumbnails (>= .955), and the largest difference between 24 x 24 grey thumbnails of equal contrast (<= .44 standard
deviations). Two birds that differ in an eye ring correlate by .997, but differ in one spot; encoding spreads its errors.
Mirror images and crops of more than about 5 % are not detected. An image of one plain colour has no hash and is compared by content only.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from fgvr.errors import ImageError
from fgvr.protocols import Cache
from fgvr.types import Sample
from fgvr.utils.batches import chunks
from fgvr.utils.images import read_image
from fgvr.utils.progress import track

BITS, CORRELATION, SPOT = 64, 0.955, 0.44
"""Near duplicates: largest Hamming distance, smallest correlation, largest difference at one spot in standard deviations."""
_SIDE, _FINE = 16, 24
_PLAIN = 2.0  # standard deviation of the grey picture, of 255, below which an image has no hash
_BLOCK = 4_000_000  # pairs per block
_VERSION = "look-1"  # raise it with every change of the hash


def perceptual_hash(image: Image.Image) -> bytes:
    """32 bytes of gradient signs, 768 of an RGB thumbnail, 576 of a finer grey one; b"" for an image without structure."""
    rgb = image.convert("RGB")
    grey = rgb.convert("L")
    small = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS), np.int16)
    if small.std() < _PLAIN:
        return b""
    signs = np.packbits(small[:, 1:] > small[:, :-1]).tobytes()
    thumbnail = rgb.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return signs + thumbnail.tobytes() + grey.resize((_FINE, _FINE), Image.Resampling.BICUBIC).tobytes()


class PerceptualHash:
    """PerceptualHash of samples, remembered by content in a cache: each picture is decoded once."""

    def __init__(self, cache: Cache, looks: Callable[[Sequence[Sample]], Iterable[bytes | None]] | None = None) -> None:
        """Args: looks: computes hashes; None = threads of this process do."""
        self._cache, self._looks = cache, looks or hashes_of

    def of(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        """Content hash -> perceptual hash. Unreadable and plain images, and samples without a content hash, are left out."""
        wanted = {sample.sha256: sample for sample in samples if sample.sha256}
        known = dict(self._cache.get(map(_key, wanted)))
        missing = [sample for sha256, sample in wanted.items() if _key(sha256) not in known]
        for some in chunks(missing, 1000):  # an interruption loses at most this many
            found = zip(some, track(self._looks(some), "looking for copies", len(some)), strict=True)
            fresh = {_key(sample.sha256): seen for sample, seen in found if seen is not None}
            self._cache.put(fresh)
            known |= fresh
        return {sha256: value for sha256 in wanted if (value := known.get(_key(sha256)))}


class HashIndex:
    """Perceptual hashes, prepared for comparison with others."""

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        """Args: hashes: perceptual hashes by content hash."""
        self._ids = list(hashes)
        self._signs, self._thumbnails, self._fine = _arrays(list(hashes.values())) if hashes else (np.zeros((0, 4), np.uint64),) * 3

    def query(self, hashes: Mapping[str, bytes]) -> dict[str, str]:
        """Content hash of each query that has a near duplicate in the index -> the best match. The same content does not count."""
        best: dict[str, tuple[float, str]] = {}
        for one, other, correlation in self.pairs(hashes):
            best[one] = max(best.get(one, (0.0, "")), (correlation, other))
        return {one: other for one, (_, other) in best.items()}

    def pairs(self, hashes: Mapping[str, bytes]) -> Iterator[tuple[str, str, float]]:
        """Every (query, entry of the index, correlation) that are near duplicates; never the same content."""
        if not hashes or not self._ids:
            return
        ids, others = list(hashes), self._ids
        signs, thumbnails, fine = _arrays(list(hashes.values()))
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


def duplicate_groups(samples: Sequence[Sample], hashes: PerceptualHash) -> list[int]:
    """(N,) index of the first sample of each sample's group: the exact and near duplicates within its class."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places: dict[tuple[str | None, str], list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault((sample.label, sample.sha256 or f"unknown {i}"), []).append(i)
    found, labels = hashes.of(samples), {sample.label for sample in samples}
    edges = [(same[0], i) for same in places.values() for i in same]
    for one, other, _ in HashIndex(found).pairs(found):
        edges += [(places[x, one][0], places[x, other][0]) for x in labels if (x, one) in places and (x, other) in places]
    graph = coo_array((np.ones(len(edges)), np.array(edges).reshape(-1, 2).T), shape=(len(samples),) * 2)
    first: dict[int, int] = {}
    return [first.setdefault(group, i) for i, group in enumerate(connected_components(graph, directed=False)[1].tolist())]


def _arrays(hashes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 4) uint64 signs; (n, 768) float32 thumbnails with mean 0 and length 1; (n, 576) grey ones with mean 0 and deviation 1."""
    table = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    size = _SIDE * _SIDE // 8
    thumbnails, fine = _centred(table[:, size : size * (1 + 8 * 3)]), _centred(table[:, size * (1 + 8 * 3) :])
    return np.ascontiguousarray(table[:, :size]).view(np.uint64), thumbnails, fine * _FINE


def _centred(rows: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and length 1; rows without any variation stay 0."""
    rows = rows.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def hashes_of(samples: Sequence[Sample]) -> Iterator[bytes | None]:
    """The perceptual hash of each; None for an image that cannot be read."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="fgvr-hash") as threads:
        yield from threads.map(_hash, samples)


def _hash(sample: Sample) -> bytes | None:
    """None for an unreadable image, which is reported where its content is needed."""
    try:
        return perceptual_hash(read_image(sample.image)[0])
    except ImageError:
        return None


def _key(sha256: str) -> str:
    return f"{_VERSION}:{sha256}"
