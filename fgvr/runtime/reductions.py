"""What can be changed about one model so that it needs less memory: for the advice of a plan, and for the doctor's cure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fgvr.runtime.loaders.base import SANE_PIXELS, find_loader
from fgvr.types import ModelSpec

_PIXELS = tuple(tokens * 28 * 28 for tokens in (1280, 1024, 768, 512, 256))  # image tokens worth proposing
_TINY = {"encoder": ("clip", 32), "mllm": ("transformers", 8), "joint": ("blip", 32)}  # loader and batch size of configs/models/*/tiny


@dataclass(frozen=True, slots=True)
class Reduction:
    """One setting. `values` go from the slightest change to the greatest; `weights` and `work`: shares that a middle one saves, roughly."""

    what: str
    spec: ModelSpec
    key: str  # of the spec; empty: the shipped model in its place
    values: tuple[Any, ...]
    weights: float = 0.0
    work: float = 0.0

    def word(self, value: Any) -> str:
        """As it is written on the command line."""
        return f"models.{self.spec.role}.{self.key}={value}" if self.key else f"models/{self.spec.role}={value}"

    def applied(self, value: Any) -> ModelSpec:
        if self.key:
            return replace(self.spec, **{self.key: value})
        loader, batch_size = _TINY[self.spec.role]
        return ModelSpec(self.spec.role, loader, value, batch_size=batch_size)

    @property
    def few(self) -> tuple[Any, ...]:
        """Values that are worth a try each."""
        return self.values if len(self.values) <= len(_PIXELS) else (self.values[len(self.values) // 2], self.values[-1])


def reductions(spec: ModelSpec) -> Iterator[Reduction]:
    """From what changes no answer to what changes the model."""
    if spec.batch_size > 1:
        yield Reduction("smaller batches", spec, "batch_size", tuple(range(spec.batch_size - 1, 0, -1)), work=0.5)
    if spec.role == "mllm" and (smaller := tuple(pixels for pixels in _PIXELS if pixels < (spec.max_pixels or SANE_PIXELS))):
        yield Reduction("fewer pixels per image", spec, "max_pixels", smaller, work=0.5)
    if spec.source == "tiny":
        return
    quantizes = find_loader(spec).quantizes
    if quantizes and spec.quantization is None:
        yield Reduction("int8 weights", spec, "quantization", ("int8",), weights=0.38)
    if quantizes and spec.quantization in (None, "int8"):
        yield Reduction(
            "int4 weights", spec, "quantization", ("nf4",), weights=0.56
        )  # vision tower, words and output head stay as they are
    if spec.dtype == "float32":
        yield Reduction("half the bytes per value", spec, "dtype", ("bfloat16",), weights=0.5)
    if "7B" in spec.source:
        yield Reduction(f"a smaller {spec.role}", spec, "source", (spec.source.replace("7B", "3B"),), weights=0.5)
    yield Reduction("the shipped model", spec, "", ("tiny",))
