"""What to change when models do not fit the budget: a cure is named only after the changed plan was computed and fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fgvr.errors import FgvrError
from fgvr.runtime.devices import device_class
from fgvr.runtime.loaders import quantized
from fgvr.runtime.loaders.base import SANE_PIXELS, find_loader
from fgvr.runtime.plan import plan
from fgvr.types import Finding, MemoryPlan, ModelSpec
from fgvr.utils.text import format_bytes

_PIXELS = (1024, 512, 256)  # image tokens worth proposing, of 28 x 28 pixels
_TINY = {"loader": "qwen", "source": "tiny", "revision": None, "dtype": "auto", "quantization": None, "max_pixels": None, "batch_size": 8}


@dataclass(frozen=True, slots=True)
class Room:
    """The models of a run and where they have to fit."""

    specs: tuple[ModelSpec, ...]
    budget: int
    reserve: int = 0
    max_models: int | None = None
    device: str = "cpu"
    most: int = 0  # bytes the device has: no budget can be larger

    def plan(self, specs: Sequence[ModelSpec] | None = None) -> MemoryPlan:
        return plan(self.specs if specs is None else specs, self.budget, reserve=self.reserve, device=self.device)

    @property
    def needed(self) -> int:
        """Bytes while one batch computes at a time, with as many models at once as may be."""
        if self.max_models is None or self.max_models >= len(self.specs):
            return self.plan().in_turns
        each = sorted((self.plan([spec]) for spec in self.specs), key=lambda one: -one.needed)[: self.max_models]
        work = [part.bytes for one in each for part in one.parts if part.kind == "work"]
        weights = sum(part.bytes for one in each for part in one.parts if part.kind == "weights")
        return weights + max(work, default=0) + self.reserve

    @property
    def fits(self) -> bool:
        return self.needed <= self.budget


Change = tuple[str, Callable[[Room], Room]]
"""An override as it is written, and what it changes."""


def budget_finding(room: Room) -> Finding:
    """Whether the models fit while one batch computes at a time; if not, the first change that is enough."""
    needed = room.needed
    detail = f"{format_bytes(needed)} needed of {format_bytes(room.budget)}, one batch computing at a time"
    return Finding("budget", room.fits, detail, "" if room.fits else cure(room))


def cure(room: Room) -> str:
    """One change, or several together, with which the models fit. Says so when nothing known is enough."""
    changes = list(_changes(room))
    together = [changes[: count + 1] for count in range(1, len(changes))]
    for chosen in [*([change] for change in changes), *together, [_larger_budget(room)]]:
        changed = room
        try:
            for _, apply in chosen:
                changed = apply(changed)
            if changed.fits and changed.budget <= max(room.most, room.budget):
                return f"write {' '.join(word for word, _ in chosen)} (needs {format_bytes(changed.needed)})"
        except FgvrError:  # the size of the changed model is not known here
            continue
    return f"nothing known is enough here, not even the smallest models: a device with {format_bytes(room.needed)} is needed"


def _changes(room: Room) -> Iterator[Change]:
    """From what changes no answer to what changes the models."""
    if len(room.specs) > 1 and room.max_models != 1:
        yield "runtime.max_models=1", lambda r: replace(r, max_models=1)
    for spec in room.specs:
        for size in (spec.batch_size // 2, 1):
            if 0 < size < spec.batch_size:
                yield _of(spec.role, "batch_size", size)
    for spec in room.specs:
        if spec.role == "mllm":
            pixels = spec.max_pixels or SANE_PIXELS
            yield from (_of("mllm", "max_pixels", tokens * 784) for tokens in _PIXELS if tokens * 784 < pixels)
            quantizes = find_loader(spec).quantizes and not quantized.lacks("nf4", device_class(room.device))
            if quantizes and spec.source != "tiny" and not spec.quantization:
                yield _of("mllm", "quantization", "nf4")
            if spec.source != "tiny":
                yield "models/mllm=tiny", lambda r: _replaced(r, "mllm", **_TINY)


def _larger_budget(room: Room) -> Change:
    hundredths = math.ceil(room.needed / 2**30 * 100)
    return f"runtime.budget={hundredths / 100:.2f}GiB", lambda r: replace(r, budget=math.ceil(hundredths * 2**30 / 100))


def _of(role: str, key: str, value: object) -> Change:
    return f"models.{role}.{key}={value}", lambda room: _replaced(room, role, **{key: value})


def _replaced(room: Room, role: str, **values: object) -> Room:
    specs = tuple(replace(spec, **values) if spec.role == role else spec for spec in room.specs)  # type: ignore[arg-type]
    return replace(room, specs=specs)
