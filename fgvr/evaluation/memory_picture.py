"""A run's memory as one self-contained SVG, without script or network.

It shows the budget, the models stacked under it, working memory and what the process held. A lane per model shows when it was loading,
resident and in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from fgvr.evaluation import html
from fgvr.evaluation.memory_steps import Mark, MemoryHistory, Span, Step
from fgvr.utils.text import format_bytes

_BUSY = ("loading", "leased", "resident")
_TIMES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)


def draw(history: MemoryHistory) -> str:
    """The chart as a document of its own, which may also stand inside a page."""
    return html.render("memory.svg", p=MemoryChart(history))


def summary(history: MemoryHistory) -> str:
    """The chart in one sentence."""
    loads, evictions = sum(t.loads for t in history.totals), sum(t.evictions for t in history.totals)
    return (
        f"Memory over {html.duration(history.seconds)}: at most {format_bytes(history.peak)} of a budget of {format_bytes(history.limit)}; "
        f"{loads} load{'s' * (loads != 1)}, {evictions} eviction{'s' * (evictions != 1)}"
    )


class MemoryChart:
    """Places things for templates/memory.svg; x is seconds, y bytes."""

    width, left, right, top, bottom, lane, lanes, colours = 960, 84, 940, 18, 278, 26, 312, 6  # colours: --m0 to --m5 of memory.css

    def __init__(self, history: MemoryHistory) -> None:
        self.history = history
        self.keys = [model.key for model in history.totals]
        self.seconds = max(history.seconds, 1e-3)
        held = max([history.peak, *(nbytes for _, nbytes in history.process)])
        # A budget far above all that was ever held would flatten everything: it is then said in words at the top.
        self.limit_shown = history.limit <= 4 * held
        self.step, self.top_bytes = _byte_ticks(max(held, history.limit if self.limit_shown else 0, 1))
        self.height = self.lanes + self.lane * len(self.keys) + 34

    def x(self, t: float) -> float:
        return self.left + t / self.seconds * (self.right - self.left)

    def y(self, nbytes: float) -> float:
        return self.bottom - nbytes / self.top_bytes * (self.bottom - self.top)

    @property
    def told(self) -> str:
        return summary(self.history)

    @property
    def sizes(self) -> list[int]:
        """Where the axis of bytes has its ticks."""
        return [i * self.step for i in range(round(self.top_bytes / self.step) + 1)]

    @property
    def times(self) -> list[float]:
        """Where the axis of seconds has its ticks."""
        tick = next((step for step in _TIMES if self.seconds / step <= 10), _TIMES[-1])
        return [i * tick for i in range(int(self.seconds / tick + 1e-9) + 1)]

    def stack(self) -> Iterator[tuple[str, str, str]]:
        """Class, style and path of each layer that is not empty, from the bottom up."""
        steps = _thinned(self.history.steps, self.seconds)
        below = [0] * len(steps)
        layers = [(f"fill:var(--m{i % self.colours})", "", [s.weights.get(key, 0) for s in steps]) for i, key in enumerate(self.keys)]
        layers += [("", "other", [s.other for s in steps]), ("", "work", [s.work for s in steps])]
        for style, kind, sizes in layers:
            above = [low + size for low, size in zip(below, sizes, strict=True)]
            if any(sizes):
                yield kind, style, self._area(steps, below, above)
            below = above

    def _area(self, steps: Sequence[Step], below: Sequence[int], above: Sequence[int]) -> str:
        ends = [*(s.t for s in steps[1:]), self.seconds]
        forth, back = (
            [f"{self.x(t):.1f} {self.y(v):.1f}" for s, end, v in zip(steps, ends, edge, strict=True) for t in (s.t, end)]
            for edge in (above, below)
        )
        return f"M{'L'.join([*forth, *reversed(back)])}Z"

    def limit(self) -> str:
        """The budget as a path, a step where it changed."""
        steps = self.history.steps
        turns = [f"H{self.x(step.t):.1f}V{self.y(step.limit):.1f}" for last, step in pairwise(steps) if step.limit != last.limit]
        return f"M{self.x(steps[0].t):.1f} {self.y(steps[0].limit):.1f}{''.join(turns)}H{self.right}"

    def marks(self) -> list[Mark]:
        """One mark of a kind per place; several would look like one."""
        return list({(round(self.x(mark.t)), mark.kind): mark for mark in reversed(self.history.marks)}.values())[::-1]

    def spans(self, key: str) -> list[Span]:
        return _merged([span for span in self.history.spans if span.key == key], self.seconds)

    def legend(self) -> Iterator[tuple[float, str, str]]:
        """Place, sign and name of each entry."""
        entries = [("work", "working memory of leases"), ("leased", "in use"), ("resident", "resident"), ("loading", "loading")]
        if self.history.process:
            entries.append(("process", "held by the process above its base (USS)"))
        if any(mark.kind in ("evicted", "parked") for mark in self.history.marks):
            entries.append(("mark", "eviction"))
        x = 24.0
        for sign, name in entries:
            yield x, sign, name
            x += 20 + 7.0 * len(name) + 18


def _thinned(steps: Sequence[Step], seconds: float, columns: int = 1000) -> list[Step]:
    """At most two steps per column of the picture: the fullest and the last."""
    kept: dict[tuple[int, str], Step] = {}
    for step in steps:
        column = int(step.t / seconds * columns)
        fullest = kept.get((column, "fullest"))
        if fullest is None or step.total > fullest.total:
            kept[column, "fullest"] = step
        kept[column, "last"] = step
    return sorted({id(s): s for s in kept.values()}.values(), key=lambda s: s.t)


def _merged(spans: Sequence[Span], seconds: float, columns: int = 800) -> list[Span]:
    """The spans themselves; one per column with its busiest state when there are more than columns."""
    if len(spans) <= columns:
        return list(spans)
    busiest: dict[int, str] = {}
    for span in spans:
        for column in range(int(span.start / seconds * columns), int(span.end / seconds * columns) + 1):
            busiest[column] = min(busiest.get(column, span.state), span.state, key=_BUSY.index)
    width = seconds / columns
    return [Span(spans[0].key, state, column * width, min(seconds, (column + 1) * width)) for column, state in sorted(busiest.items())]


def _byte_ticks(most: int) -> tuple[int, int]:
    """Step and end of an axis from 0 that holds `most` bytes with three to seven round ticks."""
    step = 1
    while most > 6 * step:
        step *= 2
    return step, step * -(-int(most * 1.04) // step)
