"""The memory history of a run, from the pool's events: who held how much when, and how often each model came and went."""

from __future__ import annotations

from dataclasses import dataclass

from fgvr.runtime.events import WAS_PARKED
from fgvr.runtime.timeline import Session, Timeline


@dataclass(frozen=True, slots=True)
class Step:
    """The ledger from `t` seconds on, until the next step: bytes by model key, working memory, and the rest."""

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
    """The whole run. `borders`: the seconds at which a resumed session begins."""

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
    """The sessions of a run, one after the other."""
    history = _Builder()
    for session in timeline.sessions:
        history.add(session)
    return history.finished()


class _Builder:
    """Walks the events of each session, and notes what changes."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._spans: list[Span] = []
        self._marks: list[Mark] = []
        self._process: list[tuple[float, int]] = []
        self._borders: list[float] = []
        self._totals: dict[str, ModelTotals] = {}
        self._seconds = 0.0
        self._since: dict[str, tuple[str, float]] = {}  # model key -> its present state, and when that began

    def add(self, session: Session) -> None:
        start, offset = session.start, self._seconds
        if offset:
            self._borders.append(offset)
        weights = {resident.key: resident.bytes for resident in start.resident}
        for resident in start.resident:
            self._total(resident.key, resident.role).bytes = resident.bytes
            self._enter(resident.key, "resident", offset)
        leases: dict[str, int] = {}
        work = 0
        self._steps.append(Step(offset, dict(weights), 0, start.reserve, start.limit))
        for event in session.events:
            t = offset + event.monotonic
            match event.kind:
                case "loading":
                    weights[event.key] = event.bytes
                    self._enter(event.key, "loading", t)
                case "loaded" | "restored":
                    weights[event.key] = event.bytes
                    total = self._total(event.key, event.role)
                    total.loads, total.bytes, total.loading_seconds = total.loads + 1, event.bytes, total.loading_seconds + event.seconds
                    self._enter(event.key, "leased" if leases.get(event.key) else "resident", t)
                case "evicted" | "parked" | "failed":
                    weights.pop(event.key, None)
                    self._enter(event.key, None, t)
                    self._total(event.key, event.role).evictions += event.kind != "failed" and event.text != WAS_PARKED
                    self._marks.append(Mark(t, event.kind, event.key, event.text))
                case "lease" | "return":
                    change = 1 if event.kind == "lease" else -1
                    work = max(0, work + change * event.work)
                    for key in event.models:
                        leases[key] = max(0, leases.get(key, 0) + change)
                        self._enter(key, "leased" if leases[key] else "resident", t)
                        total = self._total(key, "")
                        total.leases += change > 0
                        total.leased_seconds += event.seconds if change < 0 else 0.0
                case "oom" | "budget":
                    self._marks.append(Mark(t, event.kind, event.key, event.text))
                case _:
                    continue  # evicting: still there; alert: the monitor's own alerts are shown
            self._steps.append(Step(t, dict(weights), work, max(0, event.used - sum(weights.values()) - work), event.limit))
        self._marks += [Mark(offset + t, "alert", alert.subject, f"{alert.kind}: {alert.text}") for t, alert in session.alerts]
        measured = [s for s in session.samples if s.uss is not None and s.base_uss is not None]
        self._process += [(offset + s.t, max(0, (s.uss or 0) - (s.base_uss or 0))) for s in measured]
        self._seconds += session.seconds
        for key in list(self._since):
            self._enter(key, None, self._seconds)

    def finished(self) -> MemoryHistory:
        steps, spans, marks, process = tuple(self._steps), tuple(self._spans), tuple(self._marks), tuple(self._process)
        return MemoryHistory(steps, spans, marks, process, tuple(self._borders), self._seconds, tuple(self._totals.values()))

    def _enter(self, key: str, state: str | None, t: float) -> None:
        """The model is in another state from now on, and its old state becomes a span. None: it is gone."""
        before, began = self._since.get(key, (None, t))
        if before == state:
            return
        if before is not None and t > began:
            self._spans.append(Span(key, before, began, t))
        self._since.pop(key, None)
        if state is not None:
            self._since[key] = (state, t)

    def _total(self, key: str, role: str) -> ModelTotals:
        total = self._totals.setdefault(key, ModelTotals(key, role))
        total.role = total.role or role
        return total
