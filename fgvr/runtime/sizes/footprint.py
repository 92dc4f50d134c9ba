"""The record every family answers with, and what the families compute alike."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import files
from fgvr.types import ModelSpec, PlanPart

Known = TypeVar("Known")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one model; parts add up."""

    weights: tuple[PlanPart, ...]
    work: tuple[PlanPart, ...]  # what is alive at the widest moment of one batch, beside the weights
    facts: tuple[str, ...] = ()  # sizes per unit, for people: "56.0 KiB of key-value cache per token"
    host: tuple[PlanPart, ...] = ()  # main memory beside the device's
    measured: bool = False  # whether `work` was measured on this machine, else it is an estimate
    layers: tuple[int, ...] = ()  # each language layer, first to last: what can lie beside the device (runtime.offload)

    @property
    def weight_bytes(self) -> int:
        return total(self.weights)

    @property
    def work_bytes(self) -> int:
        return total(self.work)


def total(parts: Iterable[PlanPart]) -> int:
    return sum(part.bytes for part in parts)


def widest(*moments: tuple[PlanPart, ...]) -> tuple[PlanPart, ...]:
    """Of several moments of one call, the one that needs most."""
    return max(moments, key=total)


def layer_index(tensor: str) -> int | None:
    """The language layer that a tensor, or a module, belongs to; None for one of another part."""
    found = _LAYER.search(tensor)
    return int(found[1]) if found and "vis" not in tensor else None


def layer_bytes(shards: Iterable[Path], size: int) -> tuple[int, ...]:
    """Of each language layer, from file headers; values have `size` bytes."""
    values: Counter[int] = Counter()
    for name, shape in files.tensor_shapes(shards).items():
        if (index := layer_index(name)) is not None:
            values[index] += math.prod(shape)
    return tuple(values[index] * size for index in sorted(values))


def value_bytes(spec: ModelSpec, shards: Sequence[Path], otherwise: str = "float32") -> int:
    """Bytes per value once loaded. `otherwise`: what `dtype=auto` means without files."""
    if shards:
        return files.DTYPE_BYTES[files.resolve_dtype(spec.dtype, files.read_weights(shards))]
    return files.DTYPE_BYTES[otherwise if spec.dtype == "auto" else spec.dtype]


def count_values(shards: Sequence[Path], names: Iterable[str], part_of: Callable[[str], str]) -> dict[str, int]:
    """Values of each part, from file headers. `part_of` names a tensor's part, "" = counted nowhere."""
    counts = dict.fromkeys(names, 0)
    for name, shape in files.tensor_shapes(shards).items():
        if part := part_of(name):
            counts[part] += math.prod(shape)
    return counts


def origin(shards: Sequence[Path]) -> str:
    """Where the numbers of weights come from."""
    return f"{len(shards)} file" + "s" * (len(shards) > 1) if shards else "by its published configuration"


def published(spec: ModelSpec, name: str, known: Mapping[str, Known], repository: str | None = None) -> Known:
    """The shape of a published model that is not on this machine. Raises ModelLoadError for an unknown one."""
    if name in known:
        return known[name]
    folder = files.require(spec, (), repository)
    raise ModelLoadError(f"the size of {spec.source!r} is unknown: {folder} lacks files.\n{files.how_to_get(spec, repository)}")
