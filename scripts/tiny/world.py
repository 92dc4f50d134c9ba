"""The training world: genera of random combinations, none of them reserved, rendered once into a uint8 memory map."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from fgvr.data.birds import ATTRIBUTES, FINE, RESERVED_SEEDS, SIZE, distance, draw_bird, make_world, render, reserved

log = logging.getLogger(__name__)
CARDINALITIES = tuple(len(values) for values in ATTRIBUTES.values())
MEMBERS, SHOTS = 4, 3
"""Species per training genus and pictures per species."""
DEVELOPMENT_SEEDS = (9000, 9001, 9002, 9003)


@dataclass(frozen=True, slots=True)
class TrainingWorld:
    """`labels` int64 [genera, members, 10]; `pictures` uint8 [genera, members, shots, 112, 112, 3] on disk."""

    labels: np.ndarray
    pictures: np.ndarray


def excluded_hash() -> str:
    """12 hex digits of the sorted set of excluded combinations; stands in every model card."""
    return hashlib.sha256(repr(sorted(reserved())).encode()).hexdigest()[:12]


def draft_labels(genera: int, seed: int) -> np.ndarray:
    """Genera whose members are 1 or 2 fine attributes apart, int64 [genera, members, 10]; asserts that nothing is reserved."""
    rng, forbidden = np.random.default_rng(seed), reserved(RESERVED_SEEDS)
    drafts: list[list[tuple[int, ...]]] = []
    while len(drafts) < genera:
        members = [tuple(rng.integers(CARDINALITIES).tolist())]
        for _ in range(40):
            candidate = list(members[int(rng.integers(len(members)))])
            for place in rng.choice(FINE, size=int(rng.integers(1, 3)), replace=False):
                candidate[place] = (candidate[place] + int(rng.integers(1, 3))) % 3
            if tuple(candidate) not in forbidden and all(1 <= distance(candidate, m) <= 2 for m in members):
                members.append(tuple(candidate))
            if len(members) == MEMBERS:
                break
        if len(members) == MEMBERS and members[0] not in forbidden:
            drafts.append(members)
    overlap = {m for members in drafts for m in members} & forbidden
    assert not overlap, f"{len(overlap)} training combinations are reserved"
    return np.array(drafts, np.int64)


def _render_block(path: Path, labels: np.ndarray, first: int, last: int, seed: int) -> int:
    pictures = np.load(path, mmap_mode="r+")
    for genus in range(first, last):
        for member in range(MEMBERS):
            for shot in range(SHOTS):
                rng = np.random.default_rng((seed, genus, member, shot))
                difficulty = 1.0 if rng.random() < 0.75 else float(rng.random())
                pictures[genus, member, shot] = np.asarray(draw_bird(labels[genus, member], rng, difficulty))
    return last - first


def build(folder: Path, genera: int, seed: int, workers: int = 2) -> TrainingWorld:
    """Render the training world, or open it when the folder already holds a complete one of this size and seed."""
    stamp = {"genera": genera, "seed": seed, "members": MEMBERS, "shots": SHOTS, "excluded": excluded_hash()}
    done, path = folder / "world.json", folder / "pictures.npy"
    folder.mkdir(parents=True, exist_ok=True)
    labels = draft_labels(genera, seed)
    if not (done.exists() and json.loads(done.read_text()) == stamp):
        done.unlink(missing_ok=True)
        shape = (genera, MEMBERS, SHOTS, SIZE, SIZE, 3)
        np.lib.format.open_memmap(path, "w+", np.uint8, shape).flush()
        started, finished = time.time(), 0
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            blocks = [pool.submit(_render_block, path, labels, at, min(at + 100, genera), seed) for at in range(0, genera, 100)]
            for block in as_completed(blocks):
                finished += block.result()
                log.info("rendered %d of %d genera in %.0f s", finished, genera, time.time() - started)
        done.write_text(json.dumps(stamp))
    return TrainingWorld(labels, np.load(path, mmap_mode="r"))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pictures of one development world: uint8 [species, n, 112, 112, 3] for support and test; `labels` int64 [species, 10]."""

    labels: np.ndarray
    genera: np.ndarray
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    support: np.ndarray
    test: np.ndarray


def held_out(seed: int, shots: int = 4, tests: int = 20) -> HeldOut:
    """A development world as the recogniser will see it; final worlds are refused here."""
    if seed not in range(9000, 9050):
        raise ValueError(f"world {seed} is not a development world")
    world = make_world(seed)

    def pictures(split: str, count: int) -> np.ndarray:
        return np.stack([[np.asarray(render(world, s, split, i)) for i in range(count)] for s in range(len(world.species))])

    return HeldOut(
        np.array([s.attributes for s in world.species]),
        np.array([s.genus for s in world.species]),
        tuple(s.name for s in world.species),
        tuple(s.describe() for s in world.species),
        pictures("train", shots),
        pictures("test", tests),
    )
