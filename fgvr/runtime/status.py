"""What `pool.status()` shows: a tuple of ModelStatus that prints as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgvr.types import ModelStatus
from fgvr.utils.text import format_bytes, html_table

_COLUMNS = ("model", "source", "state", "size", "leases", "hits", "loads", "idle", "")


@dataclass(frozen=True, slots=True, repr=False)
class PoolStatus(Sequence[ModelStatus]):
    """A snapshot; bytes. `used` includes working memory of running leases and the reserve."""

    models: tuple[ModelStatus, ...]
    device: str
    budget: int
    used: int
    peak: int
    host_used: int = 0
    host_budget: int = 0
    devices: tuple[PoolStatus, ...] = ()  # of each, where there are several; the other fields are then their sums

    def __getitem__(self, index: Any) -> Any:
        return self.models[index]

    def __len__(self) -> int:
        return len(self.models)

    @property
    def headline(self) -> str:
        line = f"{self.device}: {format_bytes(self.used)} of {format_bytes(self.budget)} in use, peak {format_bytes(self.peak)}"
        if self.host_budget:
            line += f"; {format_bytes(self.host_used)} of {format_bytes(self.host_budget)} in main memory"
        return line

    def __repr__(self) -> str:
        if self.devices:
            return "\n".join(map(repr, self.devices))
        rows = [_COLUMNS, *map(_row, self.models)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.headline, *(lines if self.models else ["no models yet"])])

    @property
    def html(self) -> str:
        if self.devices:
            return "".join(status.html for status in self.devices)
        return f"<div><b>{self.headline}</b>{html_table(_COLUMNS, map(_row, self.models))}</div>"

    def _repr_html_(self) -> str:
        return self.html


def _row(model: ModelStatus) -> tuple[str, ...]:
    idle = f"{model.idle_seconds:.0f} s" if model.here and not model.leases else ""
    level = f"priority {model.priority}" if model.priority else ""
    batches = [f"{call} in batches of {size} since memory ran out" for call, size in model.working_sizes]
    note = ", ".join(filter(None, ["pinned" if model.pinned else "", level, *batches, model.error]))
    counts = (str(model.leases), str(model.hits), str(model.loads))
    return (model.key, model.source, model.state, format_bytes(model.bytes), *counts, idle, note)
