"""What would be resident at once, by parts, and what to change when it does not fit. Loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fgvr.runtime.loaders.base import SANE_PIXELS, Loader, find_loader
from fgvr.types import MemoryPlan, ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

_INT4_SHARE = 0.40  # of 16-bit weights: vision tower and output head stay as they are


@dataclass(frozen=True, slots=True)
class Need:
    """One model's share, in bytes."""

    spec: ModelSpec
    weights: int
    work: int
    note: str = ""


def plan(specs: Iterable[ModelSpec], budget: int, *, reserve: int = 0, loaders: Callable[[ModelSpec], Loader] = find_loader) -> MemoryPlan:
    """All of `specs` at once within `budget` bytes. Raises ModelLoadError when a model's size cannot be known."""
    needs = []
    for spec in specs:
        loader = loaders(spec)
        needs.append(Need(spec, loader.estimate(spec), loader.work_bytes(spec)))
    return describe(needs, budget, reserve=reserve)


def describe(needs: Sequence[Need], budget: int, *, reserve: int = 0, work: int | None = None) -> MemoryPlan:
    """A plan from sizes already known; `work` replaces the models' own working memory when a lease asked for so much."""
    parts = [PlanPart(f"{n.spec.role} weights", n.weights, _note(n)) for n in needs]
    if work is None:
        parts += [PlanPart(f"{n.spec.role} working memory", n.work, f"batch of {n.spec.batch_size}") for n in needs]
    else:
        parts.append(PlanPart("working memory", work, "asked for"))
    if reserve:
        parts.append(PlanPart("reserve", reserve, "runtime.reserve"))
    short = sum(p.bytes for p in parts) - budget
    return MemoryPlan(budget, tuple(parts), _advice(needs, budget, reserve, short) if short > 0 else ())


def _note(need: Need) -> str:
    spec = need.spec
    words = [spec.source, spec.dtype if spec.dtype != "auto" else "", spec.quantization or "", need.note]
    return ", ".join(filter(None, words))


def _advice(needs: Sequence[Need], budget: int, reserve: int, short: int) -> tuple[str, ...]:
    """Levers that exist for these models, with what each gives."""
    advice = []
    largest = max((n.weights + n.work for n in needs), default=0)
    if len(needs) > 1 and largest + reserve <= budget:
        advice.append("keep one model at a time: runtime.max_models=1 (models are reloaded as they take turns)")
    for need in sorted(needs, key=lambda n: -n.weights):
        advice += _levers(need)
    if reserve and short <= reserve:
        advice.append(f"lower runtime.reserve by {format_bytes(short)}")
    advice.append(f"raise the budget by {format_bytes(short)}: runtime.budget={(budget + short) / 2**30:.2f}GiB")
    return tuple(advice)


def _levers(need: Need) -> list[str]:
    spec, role = need.spec, need.spec.role
    levers = []
    if role == "mllm" and not spec.quantization and spec.source != "tiny" and need.weights > 2**30:
        saved = int(need.weights * (1 - _INT4_SHARE))
        levers.append(f"4-bit weights: models.mllm.quantization=int4 (about {format_bytes(saved)} less)")
    if spec.dtype == "float32":
        levers.append(f"half the bytes per weight: models.{role}.dtype=bfloat16 ({format_bytes(need.weights // 2)} less)")
    if role == "mllm" and need.work > 2**28 and (spec.max_pixels is None or spec.max_pixels > SANE_PIXELS):
        levers.append(f"fewer pixels per image: models.mllm.max_pixels={SANE_PIXELS}")
    if spec.batch_size > 1 and need.work:
        half = spec.batch_size // 2
        saved = need.work * (spec.batch_size - half) // spec.batch_size
        levers.append(f"smaller batches: models.{role}.batch_size={half} (about {format_bytes(saved)} less)")
    if spec.source != "tiny":
        smaller = "models=qwen2_5_vl_3b or models=tiny" if "7B" in spec.source else "models=tiny"
        levers.append(f"a smaller {role}: {smaller}")
    return levers
