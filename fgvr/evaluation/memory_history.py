"""The memory history of a run, from the pool's events: how much was in use when, and how often each model came and went."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from fgvr.evaluation import charts, html
from fgvr.runtime.events import WAS_PARKED
from fgvr.runtime.timeline import Timeline
from fgvr.utils.text import format_bytes

_COLUMNS = 200  # of the chart


@dataclass(slots=True)
class ModelTotals:
    """One model over the whole run."""

    key: str
    role: str
    bytes: int = 0
    loads: int = 0
    evictions: int = 0
    leases: int = 0
    loading_seconds: float = 0.0
    leased_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryHistory:
    """The whole run, all its sessions one after the other. Bytes."""

    used: tuple[tuple[float, int, int], ...]  # from this second on: in use by the ledger, and the budget
    process: tuple[tuple[float, int], ...]  # at this second: held by the process above its base (USS)
    seconds: float
    totals: tuple[ModelTotals, ...]
    troubles: Counter[str]  # alerts, and times that memory ran out

    def __str__(self) -> str:
        peak, limit = (format_bytes(max(row[i] for row in self.used)) for i in (1, 2))
        counts = {"load": sum(t.loads for t in self.totals), "eviction": sum(t.evictions for t in self.totals)} | self.troubles
        told = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())
        return f"Memory over {html.duration(self.seconds)}: at most {peak} of a budget of {limit}; {told}"

    def chart(self) -> charts.Chart:
        """Shares of the budget over the run; of each column the most that was in use."""
        seconds, limit = max(self.seconds, 1e-3), max(row[2] for row in self.used)
        times, used = (np.array([row[i] for row in self.used], float) for i in (0, 1))
        columns = np.arange(_COLUMNS) / _COLUMNS
        since = np.searchsorted(times / seconds, columns, side="right") - 1
        lines = [charts.Line("in use: weights, leases, reserve", columns, np.maximum.reduceat(used / limit, since), "ours")]
        if self.process:
            x, held = (np.array([row[i] for row in self.process], float) for i in (0, 1))
            lines.append(charts.Line("held by the process above its base (USS)", x / seconds, held / limit, "floor"))
        return charts.chart("Memory", "share of the run's time", "share of the budget", lines)


def memory_history(timeline: Timeline) -> MemoryHistory:
    used: list[tuple[float, int, int]] = []
    process: list[tuple[float, int]] = []
    totals: dict[str, ModelTotals] = {}
    troubles: Counter[str] = Counter()
    seconds = 0.0
    for session in timeline.sessions:
        start = session.start
        for resident in start.resident:
            totals.setdefault(resident.key, ModelTotals(resident.key, resident.role)).bytes = resident.bytes
        used.append((seconds, sum(resident.bytes for resident in start.resident) + start.reserve, start.limit))
        for event in session.events:
            used.append((seconds + event.monotonic, event.used, event.limit))
            for key in event.models or filter(None, [event.key]):
                total = totals.setdefault(key, ModelTotals(key, event.role))
                total.role = total.role or event.role
                match event.kind:
                    case "loaded" | "restored":
                        total.loads += 1
                        total.bytes = event.bytes
                        total.loading_seconds += event.seconds
                    case "evicted" | "parked":
                        total.evictions += event.text != WAS_PARKED
                    case "lease":
                        total.leases += 1
                    case "return":
                        total.leased_seconds += event.seconds
            troubles["out of memory"] += event.kind == "oom"
        troubles["alert"] += len(session.alerts)
        measured = [s for s in session.samples if s.uss is not None and s.base_uss is not None]
        process += [(seconds + s.t, max(0, (s.uss or 0) - (s.base_uss or 0))) for s in measured]
        seconds += session.seconds
    return MemoryHistory(tuple(used), tuple(process), seconds, tuple(totals.values()), +troubles)
