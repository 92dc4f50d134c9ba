"""A run's pool events as what a picture and a table need: who held how much when, and how often each model came and went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fgvr.runtime.events import WAS_PARKED
from fgvr.runtime.timeline import Session, Timeline


@dataclass(frozen=True, slots=True)
class Step:
    """From `t` seconds on, until the next step: bytes by model key, working memory, and what else the ledger holds."""

    t: float
    weights: dict[str, int]
    work: int
    other: int
    limit: int

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.work + self.other


@dataclass(frozen=True, slots=True)
class Span:
    """A model in one state from `start` to `end`, in seconds."""

    key: str
    state: str  # loading, resident or leased
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at one moment: evicted, failed, oom, alert, budget."""

    t: float
    kind: str
    key: str
    text: str


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
    """The whole run, sessions one after the other; `borders`: where a resumed session begins."""

    steps: tuple[Step, ...]
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]
    process: tuple[tuple[float, int], ...]  # seconds, USS above its base
    borders: tuple[float, ...]
    seconds: float
    totals: tuple[ModelTotals, ...]

    @property
    def limit(self) -> int:
        return max(step.limit for step in self.steps)

    @property
    def peak(self) -> int:
        return max(step.total for step in self.steps)


def memory_history(timeline: Timeline) -> MemoryHistory:
    steps: list[Step] = []
    spans: list[Span] = []
    marks: list[Mark] = []
    process: list[tuple[float, int]] = []
    borders: list[float] = []
    totals: dict[str, ModelTotals] = {}
    offset = 0.0
    for session in timeline.sessions:
        if offset:
            borders.append(offset)
        walk = _SessionWalk(session, offset, totals)
        steps += walk.steps()
        spans += walk.spans
        marks += walk.marks
        marks += [Mark(offset + t, "alert", alert.subject, f"{alert.kind}: {alert.text}") for t, alert in session.alerts]
        process += [(offset + s.t, max(0, s.uss - s.base_uss)) for s in session.samples if s.uss is not None and s.base_uss is not None]
        offset += session.seconds
    return MemoryHistory(tuple(steps), tuple(spans), tuple(marks), tuple(process), tuple(borders), offset, tuple(totals.values()))


@dataclass(slots=True)
class _SessionWalk:
    """One session, event by event."""

    session: Session
    offset: float
    totals: dict[str, ModelTotals]
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def steps(self) -> Iterator[Step]:
        start = self.session.start
        weights = {r.key: r.bytes for r in start.resident}
        since: dict[str, tuple[str, float]] = {key: ("resident", self.offset) for key in weights}
        leases: dict[str, int] = {}
        work = 0
        for resident in start.resident:
            self._total(resident.key, resident.role).bytes = resident.bytes
        yield Step(self.offset, dict(weights), 0, start.reserve, start.limit)
        for event in self.session.events:
            t = self.offset + event.monotonic
            match event.kind:
                case "loading":
                    weights[event.key] = event.bytes
                    self._enter(since, event.key, "loading", t)
                case "loaded" | "restored":
                    weights[event.key] = event.bytes
                    total = self._total(event.key, event.role)
                    total.loads, total.bytes, total.loading_seconds = total.loads + 1, event.bytes, total.loading_seconds + event.seconds
                    self._enter(since, event.key, "leased" if leases.get(event.key) else "resident", t)
                case "evicted" | "parked" | "failed":
                    weights.pop(event.key, None)
                    self._enter(since, event.key, None, t)
                    if event.kind != "failed" and event.text != WAS_PARKED:
                        self._total(event.key, event.role).evictions += 1
                    self.marks.append(Mark(t, event.kind, event.key, event.text))
                case "lease" | "return":
                    change = 1 if event.kind == "lease" else -1
                    work = max(0, work + change * event.work)
                    for key in event.models:
                        leases[key] = max(0, leases.get(key, 0) + change)
                        self._enter(since, key, "leased" if leases[key] else "resident", t)
                        total = self._total(key, "")
                        total.leases += change > 0
                        total.leased_seconds += event.seconds if change < 0 else 0.0
                case "oom" | "budget":
                    self.marks.append(Mark(t, event.kind, event.key, event.text))
                case _:
                    continue  # evicting: still there; alert: the monitor's own alerts are shown
            yield Step(t, dict(weights), work, max(0, event.used - sum(weights.values()) - work), event.limit)
        end = self.offset + self.session.seconds
        for key in list(since):
            self._enter(since, key, None, end)

    def _enter(self, since: dict[str, tuple[str, float]], key: str, state: str | None, t: float) -> None:
        """The model is in another state from now on; the old one becomes a span."""
        before = since.get(key)
        if before is not None and before[0] == state:
            return
        if before is not None and t > before[1]:
            self.spans.append(Span(key, before[0], before[1], t))
        if state is None:
            since.pop(key, None)
        else:
            since[key] = (state, t)

    def _total(self, key: str, role: str) -> ModelTotals:
        total = self.totals.setdefault(key, ModelTotals(key, role))
        total.role = total.role or role
        return total
