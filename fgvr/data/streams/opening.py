"""A stream as a data set: its classes, support images chosen in one pass, and all else to test."""

import heapq
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from fgvr.data.catalog import NO_SUPPORT, Catalog
from fgvr.data.datasets import Dataset
from fgvr.data.folder import BadImage
from fgvr.data.splits import OnBadImage, Shots, Split, SplitRequest, cut, shots_taken
from fgvr.data.streams.formats import Format
from fgvr.data.streams.index import StreamIndex
from fgvr.data.streams.samples import StreamSamples
from fgvr.errors import DatasetError, ImageError
from fgvr.types import Category, Sample
from fgvr.utils.files import short_hash
from fgvr.utils.images import read_image
from fgvr.utils.lazy import LazySequence
from fgvr.utils.paths import user_path
from fgvr.utils.progress import track
from fgvr.utils.text import natural, plain_name, printable

log = logging.getLogger(__name__)

_SPARE = 4  # images of each class chosen beyond those asked for, in place of what cannot be decoded


def open_stream(
    stream: Format,
    *,
    shots: Shots = 4,
    tail_shots: int | None = None,
    test_per_class: int | None = None,
    calibration: int = 0,
    split_seed: int = 0,
    superclass: str = "object",
    names: str | None = None,
    strict: bool = False,
    on_bad_image: OnBadImage = "skip",
    cache_dir: Path | str,
) -> Dataset:
    """Lists the stream into an index below `cache_dir`, or goes on where a killed process left it; then chooses the split.

    Shards of a test part are the test, else validation shards, else what the shots leave. Shots are chosen as in a folder, by a hash of
    seed, label and key. `names`: a file with one class name per line, for labels that are numbers; `classnames.txt` beside the shards is
    found. Raises DatasetError.
    """
    root, request = stream.root, SplitRequest(shots, test_per_class, calibration, split_seed, tail_shots, strict)
    index = listed(stream, cache_dir, strict=on_bad_image == "error")
    parts, notes = index.parts, list(_fault_notes(index))
    pool, test = _official(parts, notes)
    catalog = _catalog(parts.get(pool, {}), superclass, _names(root, names))
    if unknown := sorted(set(parts.get(test, {})) - set(catalog.ids)):
        raise DatasetError(f"{root}: classes with test but no support images: {', '.join(unknown[:10])}; {NO_SUPPORT}")
    copies, contradictions = index.repeated()
    if len(contradictions):
        notes.append(f"{len(contradictions):,} images are in two classes and left out of both")
    dropped = contradictions if test != pool else np.union1d(copies, contradictions)
    if test == pool and len(copies):
        notes.append(f"{len(copies):,} exact copies of other images were left out")
    counts = request.shots_of(catalog.ids)
    wanted = parts[pool] if counts is None else {label: counts[label] + calibration for label in catalog.ids}
    numbers, best = _best(index, stream, pool, wanted, split_seed, dropped)
    usable, unreadable = _usable(best, wanted)
    try:
        taken = shots_taken(catalog, usable, request, notes, (test_per_class or 0) if shots == "all" and test == pool else 0)
    except DatasetError as error:
        told = [f"{len(unreadable):,} images cannot be decoded, the first: {next(iter(unreadable.values()))}"] if unreadable else []
        raise DatasetError(". ".join([str(error), *notes, *told])) from error
    support, held = cut(usable, taken, calibration)
    kept = [numbers[key] for key in (*(sample.key for sample in (*support, *held)), *unreadable)] if test == pool else []
    gone = np.union1d(dropped, np.array(kept, np.uint32))
    if test_per_class is None:
        tested = index.ids(test)
        tested = tested[~np.isin(tested, gone)]
    else:
        tested = np.array(sorted(_ranked(index, test, dict.fromkeys(catalog.ids, test_per_class), split_seed, gone)), np.uint32)
    for note in notes:
        log.warning("%s: %s", root, note)
    bad = LazySequence(index.faults, lambda i: BadImage("/".join(filter(None, index.fault(i)[:2])), index.fault(i)[2]))
    name = re.sub(r"[^\w.-]+", "_", root.resolve().stem) or "stream"
    split = Split(support, StreamSamples(index, stream, tested), held)
    return Dataset(name, printable(root.resolve().name), catalog, superclass, split, root, tuple(notes), bad)


def open_images(stream: Format, *, cache_dir: Path | str) -> tuple[StreamSamples, list[str]]:
    """All images of a stream, whatever their labels, and what to know about them."""
    index = listed(stream, cache_dir, strict=False)
    return StreamSamples(index, stream, index.ids()), list(_fault_notes(index))


def listed(stream: Format, cache_dir: Path | str, *, strict: bool) -> StreamIndex:
    """The index of a stream, complete."""
    index = StreamIndex(user_path(cache_dir) / "streams" / f"{short_hash(repr(stream))}.sqlite")
    index.update(stream, strict=strict)
    if not index.last:
        raise DatasetError(f"no image in this stream could be used: {'; '.join(_fault_notes(index)) or 'its shards are empty'}")
    return index


def _fault_notes(index: StreamIndex) -> Iterator[str]:
    for count, shard, key, reason in index.fault_kinds:
        first = "/".join(filter(None, (shard, key)))
        yield f"{count:,} rows or shards were left out, the first: {first} {reason}"


def _official(parts: dict[str, dict[str, int]], notes: list[str]) -> tuple[str, str]:
    """The parts that support and test come from; the same one where the stream makes no split."""
    if "support" not in parts or len(parts) == 1:
        (only,) = parts if len(parts) == 1 else (max(parts, key=lambda part: sum(parts[part].values())),)
        if len(parts) > 1:
            notes.append(f"shards of another part than {only or 'the unnamed one'} were left out: there is no training part")
        return only, only
    test = "test" if "test" in parts else "validation" if "validation" in parts else "support"
    for part in sorted(parts.keys() - {"support", test}):
        whose = f"a {part} part" if part else "shards whose names say no part, such as train or test,"
        notes.append(f"{sum(parts[part].values()):,} images of {whose} are neither support nor test: left out")
    return "support", test


def _names(root: Path, given: str | None) -> list[str]:
    file = user_path(given) if given else (root if root.is_dir() else root.parent) / "classnames.txt"
    if not file.is_file():
        if given:
            raise DatasetError(f"dataset.names={given} is not there; it is a file with one class name per line")
        return []
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as UTF-8 text with one class name per line: {error}") from error


def _catalog(labels: Iterable[str], superclass: str, names: Sequence[str]) -> Catalog:
    found = sorted(labels, key=natural)
    if not found:
        raise DatasetError("no image of this stream has a label: set dataset.label, or classify it with mode=classify image=SHARDS")
    numbered = bool(names) and all(label.isdecimal() for label in found)
    if numbered and (beyond := [label for label in found if int(label) >= len(names)]):
        raise DatasetError(f"dataset.names has {len(names)} names, and there is a label {beyond[-1]}; it needs one line per class")
    return Catalog(tuple(Category(label, names[int(label)] if numbered else plain_name(printable(label)), superclass) for label in found))


def _best(
    index: StreamIndex, stream: Format, part: str, wanted: dict[str, int], seed: int, dropped: np.ndarray
) -> tuple[dict[str, int], dict[str, list[Sample]]]:
    """Ids by key, and of each class the first samples by `splits.rank`, with some to spare."""
    ids = _ranked(index, part, {label: count + _SPARE for label, count in wanted.items()}, seed, dropped)
    by_id = dict(zip(sorted(ids), StreamSamples(index, stream, np.array(sorted(ids), np.uint32)), strict=True))
    found: dict[str, list[Sample]] = {label: [] for label in wanted}
    for number in ids:
        found[str(by_id[number].label)].append(by_id[number])
    return {sample.key: number for number, sample in by_id.items()}, found


def _ranked(index: StreamIndex, part: str, most: dict[str, int], seed: int, dropped: np.ndarray) -> list[int]:
    """Ids of the first images of each class by `splits.rank`, in that order: a seeded reservoir per class, filled in one pass."""

    def compute() -> bytes:
        heaps: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        rows = index.ranked(part)
        gone = set(dropped.tolist())
        for number, shard, key, label in track(rows, "choosing images"):
            if number in gone:
                continue
            digest = sha256(f"{seed}\0{label}\0{shard}/{key}".encode("utf-8", "surrogateescape")).digest()
            heap, entry = heaps[label], (-int.from_bytes(digest), number)
            if len(heap) < most.get(label, 0):
                heapq.heappush(heap, entry)
            elif heap and entry > heap[0]:
                heapq.heapreplace(heap, entry)
        return json.dumps([number for heap in heaps.values() for _, number in sorted(heap, reverse=True)]).encode()

    asked = short_hash([part, seed, sorted(most.items()), sha256(dropped.astype("<u4").tobytes()).hexdigest()])
    return json.loads(index.remembered(f"chosen {asked}", compute))


def _usable(best: dict[str, list[Sample]], wanted: dict[str, int]) -> tuple[dict[str, list[Sample]], dict[str, ImageError]]:
    """Of each class those that can be decoded, as many as are wanted; and, by key, why others cannot."""
    usable: dict[str, list[Sample]] = {label: [] for label in best}
    unreadable: dict[str, ImageError] = {}
    for label, samples in track(best.items(), "checking images"):
        for sample in samples:
            if len(usable[label]) >= wanted[label]:
                break
            try:
                read_image(sample.image)
                usable[label].append(sample)
            except ImageError as error:
                log.warning("%s", error)
                unreadable[sample.key] = error
    return usable, unreadable
