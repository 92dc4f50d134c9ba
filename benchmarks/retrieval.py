"""Finding the most similar of many rows: a dictionary walked class by class and sorted (the reference), one product, products by block."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.floors import read_rate
from benchmarks.nearest_rows import nearest
from benchmarks.race import Races, Way, race
from fgvr.agents.fusion import Fusion, fuse
from fgvr.knowledge.prototypes import Prototypes, unit
from fgvr.types import History

WIDTH, TOP = 512, 10
_LOOP_ROWS = 20_000  # the dictionary loop of a larger table is extrapolated from so many


def measure(*, models: str, repeat: int, size: int = 1_000_000) -> Races:
    """`models` play no part; `size`: rows of the largest table (512 wide, float32: 2 GB for a million)."""
    rng = np.random.default_rng(0)
    races, notes = {}, []
    facts: dict[str, object] = {}
    for rows in sorted({120, 1000, 10_000, size}):
        table = unit(rng.standard_normal((rows, WIDTH), dtype=np.float32))
        for count in (1, 32):
            queries = unit(rng.standard_normal((count, WIDTH), dtype=np.float32))
            ways = [Way("numpy: one product, argpartition", lambda t=table, q=queries: _product(t, q))]
            ways.append(Way("ours: by block", lambda t=table, q=queries: _ours(t, q)))
            if rows <= _LOOP_ROWS:
                ways.insert(0, Way("reference: a dictionary, sorted", lambda t=table, q=queries: _loop(t, q)))
            title = f"{rows} rows, {count} queries"
            races[title] = race(ways, items=count, repeat=repeat)
        if rows > _LOOP_ROWS:
            notes += _against_floors(table, races, rows, facts)
    return Races(races, notes + _classes(), facts)


def _against_floors(table: np.ndarray, races: dict, rows: int, facts: dict) -> list[str]:
    floor = 1000 * table.nbytes / read_rate(1 << 30)
    lap = race([Way("loop", lambda: _loop(table[:_LOOP_ROWS], table[:1]))], items=1, repeat=5)[0]
    loop = lap.wall.median * rows / _LOOP_ROWS
    one, many = (races[f"{rows} rows, {count} queries"][-1].wall.median for count in (1, 32))
    facts |= {"read_floor_ms": floor, "loop_ms": loop, "one_query_of_floor": one / floor, "many_ahead_of_loop": loop / many}
    return [
        f"{rows} rows: reading them takes {floor:.0f} ms; one query {one / floor:.2f} x that (must be at most 3)",
        f"{rows} rows: a dictionary loop would take {loop:.0f} ms a query (from {_LOOP_ROWS}); 32 queries by block are "
        f"{loop / many:.0f} x faster (must be at least 40)",
    ]


def _loop(table: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    prototypes = {str(i): row for i, row in enumerate(table)}
    for query in queries:
        scores = {name: float(np.dot(query, row)) for name, row in prototypes.items()}
        sorted(scores.items(), key=lambda item: item[1], reverse=True)[:TOP]
    return {"queries": len(queries)}


def _product(table: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    np.argpartition(-(queries @ table.T), TOP, axis=1)[:, :TOP]
    return {"queries": len(queries)}


def _ours(table: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    nearest(table, queries, TOP)
    return {"queries": len(queries)}


def _classes(classes: int = 10_000, images: int = 32) -> list[str]:
    """System 1 after the encoder, over 10,000 classes of which each has two images and a description."""
    rng = np.random.default_rng(1)
    base = unit(rng.standard_normal((classes, WIDTH), dtype=np.float32))
    near = unit(base[:, None] + 0.3 * rng.standard_normal((classes, 2, WIDTH), dtype=np.float32)).reshape(-1, WIDTH)
    known = Prototypes(
        ids=tuple(str(i) for i in range(classes)),
        shots=near,
        owners=np.repeat(np.arange(classes), 2),
        folds=np.tile([0, 1], classes),
        text=base,
        fold_text=np.stack([base, base]),
    )
    owners = rng.integers(0, classes, images)
    queries = unit(base[owners] + 0.5 * rng.standard_normal((images, WIDTH), dtype=np.float32) / WIDTH**0.5)
    histories = [History(0, 0, 0)] * classes
    began = time.perf_counter()
    results = fuse([str(i) for i in range(images)], known.compare(queries), known.ids, histories, fusion=Fusion(), temperature=0.01)
    seconds = time.perf_counter() - began
    right = sum(result.top.category == str(owner) for result, owner in zip(results, owners, strict=True))
    return [
        f"{classes} classes: prototypes, cosines, fusion {1000 * seconds / images:.1f} ms wall per image; "
        f"{right} of {images} planted ones found"
    ]
