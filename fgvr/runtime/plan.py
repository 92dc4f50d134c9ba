"""What would be resident at once, by parts, and what to change when it does not fit. Loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fgvr.errors import FgvrError, ModelLoadError
from fgvr.runtime.allocator import kept_by_libc
from fgvr.runtime.devices import device_class
from fgvr.runtime.loaders import quantized
from fgvr.runtime.loaders.base import SANE_PIXELS, find_loader
from fgvr.runtime.offload import AUTO, NONE, Asked, apply, can_offload, divide, room_for
from fgvr.runtime.probe import UNPROBED, Probes
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import MemoryPlan, ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

OPTIONAL = "not loaded unless asked for"
_PIXELS = tuple(tokens * 28 * 28 for tokens in (1280, 1024, 768, 512, 256))  # image tokens worth proposing
_TINY = {"encoder": ("clip", 32), "mllm": ("transformers", 8), "joint": ("blip", 32)}  # loader and batch size of configs/models/*/tiny


@dataclass(frozen=True, slots=True)
class Need:
    """One model's share, in bytes; `footprint` adds what they are made of."""

    spec: ModelSpec
    weights: int
    work: int
    note: str = ""
    footprint: Footprint | None = None
    device: str = "cpu"


def plan(
    specs: Iterable[ModelSpec],
    budget: int,
    *,
    reserve: int = 0,
    device: str = "cpu",
    optional: Iterable[ModelSpec] = (),
    offload: Asked = NONE,
    probes: Probes = UNPROBED,
) -> MemoryPlan:
    """All of `specs` at once within `budget` bytes of `device`. `optional`: shown, not counted.

    Raises ModelLoadError when the size of one of `specs` cannot be known.
    """
    specs = list(specs)
    needs = offload_needs([need(spec, device, probes) for spec in specs], offload, budget - reserve)
    result = describe(needs, budget, reserve=reserve)
    shown = [part for spec in optional for part in _optional(spec, device, probes)]
    kind = device_class(device)
    facts = [f"{spec.role}: {quantized.needs(spec.quantization, kind)}" for spec in specs if spec.quantization]
    facts += [f"{spec.role}: {said}" for spec in specs if (said := find_loader(spec).describe_files(spec))]
    if estimated := [one.spec.role for one in needs if one.footprint and one.footprint.work_bytes and not one.footprint.measured]:
        when = "at the first load" if kind.probes else "by mode=plan runtime.probe=true"
        facts.append(f"working memory of {' and '.join(estimated)} is an estimate; it is measured {when}")
    kept = [PlanPart("freed blocks", kept_by_libc(), "kept by the C library: runtime.allocator")] if kind.allocator == "cpu" else []
    return replace(result, optional=tuple(shown), facts=(*result.facts, *facts), host=(*result.host, *(p for p in kept if p.bytes)))


def _optional(spec: ModelSpec, device: str, probes: Probes) -> Iterator[PlanPart]:
    """Rows of a model that is not loaded unless asked for; one that is not here may stay unknown."""
    try:
        found = need(spec, device, probes)
    except ModelLoadError as error:
        yield PlanPart(f"{spec.role} weights", 0, f"{OPTIONAL}; size unknown: {str(error).splitlines()[0]}")
        return
    yield replace(_weights_part(found), note=", ".join(filter(None, (_note(found), OPTIONAL))))
    yield replace(_work_part(found), note=f"batch of {spec.batch_size}, {OPTIONAL}")


def footprint(spec: ModelSpec, device: str = "cpu") -> Footprint:
    """Bytes of a model by parts on `device` (`cpu`, `cuda:0`, ...).

    Raises ModelLoadError when they cannot be known, ConfigError for an unknown loader or device.
    """
    return find_loader(spec).footprint(spec, device_class(device))


def need(spec: ModelSpec, device: str = "cpu", probes: Probes = UNPROBED) -> Need:
    found = probes.apply(footprint(spec, device), find_loader(spec), spec, device)
    return Need(spec, found.weight_bytes, found.work_bytes, footprint=found, device=device)


def offload_needs(needs: Sequence[Need], asked: Asked, budget: int) -> list[Need]:
    """The same with layers of the MLLM beside the device, as `runtime.offload` asks."""
    return [_offloaded(one, [other for other in needs if other is not one], asked, budget) for one in needs]


def _offloaded(one: Need, others: Sequence[Need], asked: Asked, budget: int) -> Need:
    found = one.footprint
    if asked == NONE or found is None or not find_loader(one.spec).offloads:
        return one
    known = [other.footprint for other in others if other.footprint]
    if (divided := divide(found, asked, room_for(found, known, budget))) is None:
        return one
    found = apply(found, divided, one.spec, device_class(one.device))
    return replace(one, weights=found.weight_bytes, work=found.work_bytes, footprint=found)


def describe(needs: Sequence[Need], budget: int, *, reserve: int = 0, work: int | None = None) -> MemoryPlan:
    """A plan from sizes already known; `work` replaces the models' own working memory when a lease asked for so much."""
    parts = [_weights_part(n) for n in needs]
    parts += [_work_part(n) for n in needs] if work is None else [PlanPart("working memory", work, "asked for", "work")]
    if reserve:
        parts.append(PlanPart("reserve", reserve, "runtime.reserve", "reserve"))
    known = [(n.spec.role, n.footprint) for n in needs if n.footprint]
    facts = tuple(f"{role}: {fact}" for role, found in known for fact in found.facts)
    host = tuple(replace(part, name=f"{role} {part.name}") for role, found in known for part in found.host)
    result = MemoryPlan(budget, tuple(parts), facts=facts, host=host)
    short = result.needed - budget
    return replace(result, advice=tuple(_advice(needs, result, reserve, short))) if short > 0 else result


def _weights_part(need: Need) -> PlanPart:
    inner = need.footprint.weights if need.footprint else ()
    return PlanPart(f"{need.spec.role} weights", need.weights, _note(need), "weights", inner)


def _work_part(need: Need) -> PlanPart:
    inner = need.footprint.work if need.footprint else ()
    return PlanPart(f"{need.spec.role} working memory", need.work, f"batch of {need.spec.batch_size}", "work", inner)


def _note(need: Need) -> str:
    spec = need.spec
    words = [spec.source, spec.dtype if spec.dtype != "auto" else "", spec.quantization or "", need.note]
    return ", ".join(filter(None, words))


# --- what to change ----------------------------------------------------------------------------------------------------------


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
        # Vision tower, words and output head stay as they are.
        yield Reduction("int4 weights", spec, "quantization", ("nf4",), weights=0.56)
    if spec.dtype == "float32":
        yield Reduction("half the bytes per value", spec, "dtype", ("bfloat16",), weights=0.5)
    if "7B" in spec.source:
        yield Reduction(f"a smaller {spec.role}", spec, "source", (spec.source.replace("7B", "3B"),), weights=0.5)
    yield Reduction("the shipped model", spec, "", ("tiny",))


def _advice(needs: Sequence[Need], result: MemoryPlan, reserve: int, short: int) -> Iterator[str]:
    """Levers that exist for these models, with what each gives; those that suffice alone say so."""

    def line(text: str, gain: int) -> str:
        return f"{text} ({format_bytes(gain)} less{', enough' if gain >= short else ''})"

    if (gain := result.needed - result.in_turns) >= short:
        yield line("nothing, unless batches of several models shall compute at once: the pool lets them take turns", gain)
    largest = max((n.weights + n.work for n in needs), default=0)
    if len(needs) > 1 and largest + reserve <= result.budget:
        text = "keep one model at a time: runtime.max_models=1, models are reloaded as they take turns"
        yield line(text, result.needed - largest - reserve)
    for one in needs:
        if not one.footprint or not can_offload(one.spec, one.device):
            continue
        whole = replace(one, footprint=footprint(one.spec, one.device))
        beside = _offloaded(whole, [n for n in needs if n is not one], AUTO, result.budget - reserve)
        if (gain := one.weights + one.work - beside.weights - beside.work) > 0:
            yield line("layers in main memory, which takes more time: runtime.offload=auto", gain)
    for one in sorted(needs, key=lambda n: -n.weights):
        for reduction in reductions(one.spec):
            # The slightest change that suffices alone, else the greatest; where the make-up is not known, a middle one.
            values = reduction.values if one.footprint else reduction.values[len(reduction.values) // 2 :][:1]
            value, gain = None, 0
            for value in values:
                if (gain := _gain(one, reduction, value)) >= short:
                    break
            if gain > 0:
                yield line(f"{reduction.what}: {reduction.word(value)}", gain)
    if reserve and short <= reserve:
        yield line("lower runtime.reserve", short)
    yield f"raise the budget by {format_bytes(short)}: runtime.budget={math.ceil((result.budget + short) / 2**30 * 100) / 100:.2f}GiB"


def _gain(need: Need, reduction: Reduction, value: Any) -> int:
    """Bytes less with this value: by the changed model's make-up, else by the reduction's rough shares. 0 when it is not known here."""
    if need.footprint is None:
        return int(need.weights * reduction.weights + need.work * reduction.work)
    try:
        found = footprint(reduction.applied(value), need.device)
    except FgvrError:
        return 0
    before = footprint(need.spec, need.device) if need.footprint.measured else need.footprint  # estimates with estimates
    return before.weight_bytes + before.work_bytes - found.weight_bytes - found.work_bytes
