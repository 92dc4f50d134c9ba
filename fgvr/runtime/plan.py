"""What would be resident at once, by parts, and what to change when it does not fit. Loads nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fgvr.errors import FgvrError, ModelLoadError
from fgvr.runtime.allocator import kept_by_libc
from fgvr.runtime.devices import device_class
from fgvr.runtime.loaders import quantized
from fgvr.runtime.loaders.base import SANE_PIXELS, Loader, find_loader
from fgvr.runtime.sizes import Footprint, footprint
from fgvr.types import MemoryPlan, ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

OPTIONAL = "not loaded unless asked for"
_INT4_SHARE = 0.44  # of 16-bit weights: vision tower, words and output head stay as they are
_PIXELS = (1280, 1024, 768, 512, 256)  # image tokens worth proposing


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
    loaders: Callable[[ModelSpec], Loader] | None = None,
    optional: Iterable[ModelSpec] = (),
) -> MemoryPlan:
    """All of `specs` at once within `budget` bytes of `device`; `loaders` replace the shipped sizes. `optional`: shown, not counted.

    Raises ModelLoadError when the size of one of `specs` cannot be known.
    """
    specs = list(specs)
    result = describe([need(spec, device, loaders) for spec in specs], budget, reserve=reserve)
    shown = [part for spec in optional for part in _optional(spec, device, loaders)]
    kind = device_class(device)
    facts = [f"{spec.role}: {quantized.needs(spec.quantization, kind)}" for spec in specs if spec.quantization]
    if loaders is None:
        facts += [f"{spec.role}: {said}" for spec in specs if (said := find_loader(spec).presence(spec))]
    kept = [PlanPart("freed blocks", kept_by_libc(), "kept by the C library: runtime.allocator")] if kind.allocator == "cpu" else []
    return replace(result, optional=tuple(shown), facts=(*result.facts, *facts), host=(*result.host, *(p for p in kept if p.bytes)))


def _optional(spec: ModelSpec, device: str, loaders: Callable[[ModelSpec], Loader] | None) -> Iterator[PlanPart]:
    """Rows of a model that is not loaded unless asked for; one that is not here may stay unknown."""
    try:
        found = need(spec, device, loaders)
    except ModelLoadError as error:
        yield PlanPart(f"{spec.role} weights", 0, f"{OPTIONAL}; size unknown: {str(error).splitlines()[0]}")
        return
    inner, note = (found.footprint.weights if found.footprint else ()), ", ".join(filter(None, (_note(found), OPTIONAL)))
    yield PlanPart(f"{spec.role} weights", found.weights, note, "weights", inner)
    yield replace(_work_part(found), note=f"batch of {spec.batch_size}, {OPTIONAL}")


def need(spec: ModelSpec, device: str = "cpu", loaders: Callable[[ModelSpec], Loader] | None = None) -> Need:
    if loaders is not None:
        loader = loaders(spec)
        return Need(spec, loader.estimate(spec), loader.work_bytes(spec))
    found = footprint(spec, device)
    return Need(spec, found.weight_bytes, found.work_bytes, footprint=found, device=device)


def describe(needs: Sequence[Need], budget: int, *, reserve: int = 0, work: int | None = None) -> MemoryPlan:
    """A plan from sizes already known; `work` replaces the models' own working memory when a lease asked for so much."""
    parts = [PlanPart(f"{n.spec.role} weights", n.weights, _note(n), "weights", n.footprint.weights if n.footprint else ()) for n in needs]
    if work is None:
        parts += [_work_part(n) for n in needs]
    else:
        parts.append(PlanPart("working memory", work, "asked for", "work"))
    if reserve:
        parts.append(PlanPart("reserve", reserve, "runtime.reserve", "reserve"))
    known = [(n.spec.role, n.footprint) for n in needs if n.footprint]
    facts = tuple(f"{role}: {fact}" for role, found in known for fact in found.facts)
    host = tuple(replace(part, name=f"{role} {part.name}") for role, found in known for part in found.host)
    result = MemoryPlan(budget, tuple(parts), facts=facts, host=host)
    short = result.needed - budget
    return replace(result, advice=tuple(_advice(needs, result, reserve, short))) if short > 0 else result


def _work_part(need: Need) -> PlanPart:
    inner = need.footprint.work if need.footprint else ()
    return PlanPart(f"{need.spec.role} working memory", need.work, f"batch of {need.spec.batch_size}", "work", inner)


def _note(need: Need) -> str:
    spec = need.spec
    words = [spec.source, spec.dtype if spec.dtype != "auto" else "", spec.quantization or "", need.note]
    return ", ".join(filter(None, words))


# --- what to change ----------------------------------------------------------------------------------------------------------


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
    for one in sorted(needs, key=lambda n: -n.weights):
        for text, gain in _levers(one, short):
            if gain > 0:
                yield line(text, gain)
    if reserve and short <= reserve:
        yield line("lower runtime.reserve", short)
    yield f"raise the budget by {format_bytes(short)}: runtime.budget={math.ceil((result.budget + short) / 2**30 * 100) / 100:.2f}GiB"


def _levers(need: Need, short: int) -> Iterator[tuple[str, int]]:
    """Text and bytes gained. With a known footprint each is computed anew for the changed model, else estimated."""
    spec, role = need.spec, need.spec.role
    known = need.footprint is not None
    if spec.batch_size > 1 and need.work:
        yield _smaller_batch(need, short)
    if role == "mllm" and known and need.work > 2**26:
        pixels = spec.max_pixels or SANE_PIXELS
        smaller = [n * 28 * 28 for n in _PIXELS if n * 28 * 28 < pixels]
        gains = [(size, _gain(need, replace(spec, max_pixels=size))) for size in smaller]
        if gains:
            size, gain = next(((size, gain) for size, gain in gains if gain >= short), gains[-1])
            yield f"fewer pixels per image: models.mllm.max_pixels={size}", gain
    elif role == "mllm" and need.work > 2**28 and (spec.max_pixels is None or spec.max_pixels > SANE_PIXELS):
        yield f"fewer pixels per image: models.mllm.max_pixels={SANE_PIXELS}", need.work // 2
    if find_loader(spec).quantizes and spec.source != "tiny" and need.weights > 2**30:
        for kind, bits, share in (("int8", "int8", 0.62), ("nf4", "int4", _INT4_SHARE))[1 if spec.quantization else 0 :]:
            gain = _gain(need, replace(spec, quantization=kind)) if known else int(need.weights * (1 - share))
            yield f"{bits} weights: models.mllm.quantization={kind}", gain
    if spec.dtype == "float32":
        yield (
            f"half the bytes per value: models.{role}.dtype=bfloat16",
            _gain(need, replace(spec, dtype="bfloat16")) if known else need.weights // 2,
        )
    if spec.source != "tiny":
        if "7B" in spec.source:
            other = replace(spec, source=spec.source.replace("7B", "3B"))
            yield f"a smaller mllm: models.mllm.source={other.source}", _gain(need, other) if known else need.weights // 2
        yield f"the shipped model: models/{role}=tiny", _gain(need, replace(spec, source="tiny", dtype="auto", max_pixels=None))


def _smaller_batch(need: Need, short: int) -> tuple[str, int]:
    """The largest batch that suffices alone, else half of it."""
    spec = need.spec
    if need.footprint is None:
        half = spec.batch_size // 2
        return f"smaller batches: models.{spec.role}.batch_size={half}", need.work * (spec.batch_size - half) // spec.batch_size
    sizes = range(spec.batch_size - 1, 0, -1)
    gains = {size: _gain(need, replace(spec, batch_size=size)) for size in sizes}
    size = next((size for size in sizes if gains[size] >= short), max(1, spec.batch_size // 2))
    return f"smaller batches: models.{spec.role}.batch_size={size}", gains[size]


def _gain(need: Need, other: ModelSpec) -> int:
    """Bytes less with another model or form of it; 0 when its size is not known here."""
    try:
        found = footprint(other, need.device)
    except FgvrError:
        return 0
    return need.weights + need.work - found.weight_bytes - found.work_bytes
