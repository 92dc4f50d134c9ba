"""What to change when models do not fit the budget: a cure is named only after the changed plan was computed and fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fgvr.errors import FgvrError
from fgvr.runtime.devices import device_class
from fgvr.runtime.loaders import quantized
from fgvr.runtime.offload import AUTO, NONE, Asked, can_offload
from fgvr.runtime.plan import need, offload_needs
from fgvr.runtime.probe import Probes
from fgvr.runtime.reductions import Reduction, reductions
from fgvr.types import Finding, ModelSpec
from fgvr.utils.text import format_bytes


@dataclass(frozen=True, slots=True)
class Room:
    """The models of a run and where they have to fit."""

    specs: tuple[ModelSpec, ...]
    budget: int
    reserve: int = 0
    max_models: int | None = None
    device: str = "cpu"
    offload: Asked = NONE
    probes: Probes = field(default_factory=Probes)
    most: int = 0  # bytes the device has: no budget can be larger

    @property
    def needed(self) -> int:
        """Bytes while one batch computes at a time, with as many models at once as may be."""
        needs = offload_needs([need(spec, self.device, self.probes) for spec in self.specs], self.offload, self.budget - self.reserve)
        needs = sorted(needs, key=lambda n: -n.weights - n.work)[: self.max_models]
        return sum(n.weights for n in needs) + max((n.work for n in needs), default=0) + self.reserve

    @property
    def fits(self) -> bool:
        return self.needed <= self.budget


def budget_finding(room: Room) -> Finding:
    """Whether the models fit while one batch computes at a time; if not, the first change that is enough."""
    needed = room.needed
    detail = f"{format_bytes(needed)} needed of {format_bytes(room.budget)}, one batch computing at a time"
    return Finding("budget", room.fits, detail, "" if room.fits else cure(room))


def cure(room: Room) -> str:
    """One change, or several together, with which the models fit. Says so when nothing known is enough."""
    for word, changed in _changes(room):
        try:
            if changed.fits and changed.budget <= max(room.most, room.budget):
                return f"write {word} (needs {format_bytes(changed.needed)})"
        except FgvrError:  # the size of the changed model is not known here
            continue
    return f"nothing known is enough here, not even the smallest models: a device with {format_bytes(room.needed)} is needed"


def _changes(room: Room) -> Iterator[tuple[str, Room]]:
    """Overrides as they are written, and what they mean: alone, from what changes no answer to what changes the models; then together."""
    words, together = [], room
    if len(room.specs) > 1 and room.max_models != 1:
        words, together = ["runtime.max_models=1"], replace(room, max_models=1)
        yield words[0], together
    device = device_class(room.device)
    known = [reduction for spec in room.specs for reduction in reductions(spec)]
    found = [one for one in known if one.key != "quantization" or not quantized.lacks(one.values[-1], device)]
    found.sort(key=lambda reduction: reduction.key != "batch_size")
    for reduction in found:
        yield from ((reduction.word(value), _with(room, reduction, value)) for value in reduction.few)
    if room.offload == NONE and any(can_offload(spec, room.device) for spec in room.specs):
        yield f"runtime.offload={AUTO}", replace(room, offload=AUTO)
    for reduction in found:
        if reduction.key:  # a shipped model is small enough alone, or nothing is
            words, together = [*words, reduction.word(reduction.values[-1])], _with(together, reduction, reduction.values[-1])
            yield " ".join(words), together
    hundredths = math.ceil(room.needed / 2**30 * 100)
    yield f"runtime.budget={hundredths / 100:.2f}GiB", replace(room, budget=math.ceil(hundredths * 2**30 / 100))


def _with(room: Room, reduction: Reduction, value: Any) -> Room:
    return replace(room, specs=tuple(replace(reduction, spec=s).applied(value) if s.role == reduction.spec.role else s for s in room.specs))
