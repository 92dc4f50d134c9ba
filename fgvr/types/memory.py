"""Which model, how it stands in the pool, and what it needs of memory."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fgvr.utils.text import format_bytes

Role = Literal["encoder", "mllm", "joint"]
ROLES: tuple[Role, ...] = get_args(Role)
"""What a model is for, in the order in which an image meets them."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, in which form. Two specs with one `key` share one copy."""

    role: Role  # what it is for
    loader: str  # module name below fgvr.runtime.loaders: clip, qwen, blip, mlx, remote, fake
    source: str  # folder, hub repository or "tiny" (shipped); addresses of a remote one
    revision: str | None = None  # of the hub repository
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    quantization: str | None = None  # int8, nf4
    max_pixels: int | None = None  # the processor's cap; changes memory, hence part of the key
    batch_size: int = 8  # how many images or prompts go through at once; not part of the key
    patience: float = 600.0  # seconds a remote engine that is away or busy is waited for; not part of the key
    offloaded: int = 0  # language layers that lie beside the device (runtime.offload), as the pool decides; not part of the key
    model: str | None = None  # of a remote engine: the model's name there; None: what `source` names, or its only one

    @property
    def identity(self) -> tuple[Any, ...]:
        named = () if self.model is None else (self.model,)
        return (self.loader, self.source, self.revision, self.dtype, self.quantization, self.role, self.max_pixels, *named)

    @property
    def key(self) -> str:
        """`role-hash8`, as shown in status tables and REST paths."""
        return f"{self.role}-{hashlib.sha256(repr(self.identity).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as the pool sees it; bytes are measured once resident, estimated before. `draining`: resident and leased, and the next in
    the queue needs its place, so nobody else gets it before."""

    key: str
    role: str
    source: str
    state: Literal["absent", "loading", "resident", "draining", "parked", "evicting", "failed"]
    bytes: int
    leases: int
    hits: int
    loads: int
    pinned: bool
    idle_seconds: float
    error: str = ""
    host_bytes: int = 0  # held in main memory, for a quick way back to the device
    priority: int = 0  # the higher, the longer it stays
    return_seconds: float = 0.0  # what it took to bring it in when that was last done; 0 = never done
    gap_seconds: float = 0.0  # usual time between two uses; 0 = used once at most
    working_sizes: tuple[tuple[str, int], ...] = ()  # (call, largest batch) learned when memory ran out
    last_used: float | None = None  # Unix seconds at which its last lease began or ended; None = never lent

    @property
    def here(self) -> bool:
        """Whether it is on the device, ready to compute."""
        return self.state in ("resident", "draining")

    @property
    def placed(self) -> bool:
        """Whether it has a place on the device: here, or on its way in or out."""
        return self.here or self.state in ("loading", "evicting")


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What one of several devices did in a run. Bytes; loads by role."""

    device: str
    budget: int
    peak_bytes: int
    loads: Mapping[str, int]

    def __str__(self) -> str:
        loads = ", ".join(f"{role} {count}" for role, count in self.loads.items() if count) or "nothing"
        return f"{self.device}: at most {format_bytes(self.peak_bytes)} of {format_bytes(self.budget)}, loaded {loads}"


@dataclass(frozen=True, slots=True)
class PlanPart:
    """One line of a memory plan; `parts`, where given, say what it is made of and add up to it."""

    name: str
    bytes: int
    note: str = ""
    kind: Literal["weights", "work", "reserve", ""] = ""
    parts: tuple["PlanPart", ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class MemoryPlan:
    """What would be resident at once and whether it fits."""

    budget: int
    parts: tuple[PlanPart, ...]
    advice: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()  # sizes per token and per image
    host: tuple[PlanPart, ...] = ()  # main memory beside the device's; not part of the budget
    optional: tuple[PlanPart, ...] = ()  # not part of what is needed: loaded only when asked for, or there now and able to leave

    @property
    def needed(self) -> int:
        """All models resident and a batch of each computing at once."""
        return sum(part.bytes for part in self.parts)

    @property
    def in_turns(self) -> int:
        """All models resident, one batch computing at a time."""
        work = [part.bytes for part in self.parts if part.kind == "work"]
        return self.needed - sum(work) + max(work, default=0)

    @property
    def fits(self) -> bool:
        return self.needed <= self.budget

    @property
    def verdict(self) -> str:
        if self.fits:
            return f"fits, {format_bytes(self.budget - self.needed)} to spare"
        if self.in_turns <= self.budget:
            return f"fits while one batch computes at a time ({format_bytes(self.in_turns)}); all at once {format_bytes(self.needed)}"
        return f"does not fit: {format_bytes(self.in_turns - self.budget)} too much, one batch at a time"

    @property
    def rows(self) -> list[tuple[str, int, str]]:
        """Name (parts of a part indented), bytes and note of every line, the sum last, and below it what is not part of the sum."""
        rows = [row for part in self.parts for row in _part_rows(part, "")]
        rows.append(("needed", self.needed, f"of {format_bytes(self.budget)}: {self.verdict}"))
        return rows + [row for part in self.optional for row in _part_rows(part, "")]

    def __repr__(self) -> str:
        width = max(len(name) for name, _, _ in self.rows)
        lines = [f"{name:<{width}}  {format_bytes(size):>12}  {note}".rstrip() for name, size, note in self.rows]
        return "\n".join([*lines, *(f"- {line}" for line in self.advice)])


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing `mode=doctor` looked at; `cure` says what to do where it is not well."""

    topic: str
    well: bool
    detail: str
    cure: str = ""


def _part_rows(part: PlanPart, indent: str) -> list[tuple[str, int, str]]:
    rows = [(indent + part.name, part.bytes, part.note)]
    return rows + [row for inner in part.parts for row in _part_rows(inner, indent + "  ")]
