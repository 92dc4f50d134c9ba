"""A run's memory as one self-contained SVG: the budget, models stacked under it, working memory, what the process really held, and a lane
per model that shows when it was loading, resident and in use. Light and dark, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from fgvr.evaluation.memory_steps import Course, Span, Step
from fgvr.utils.text import format_bytes

_WIDTH, _LEFT, _RIGHT, _TOP, _PLOT, _LANE, _GAP = 960, 84, 20, 18, 260, 26, 34
_COLOURS = 6  # --m0 to --m5 of memory.css
_BUSY = ("loading", "leased", "resident")
_TIMES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)


def draw(course: Course) -> str:
    """The picture, as a document of its own that may also stand inside a page."""
    return _Picture(course).svg()


def summary(course: Course) -> str:
    """What the picture shows, in one sentence."""
    loads, evictions = sum(t.loads for t in course.tallies), sum(t.evictions for t in course.tallies)
    return (
        f"Memory over {_duration(course.seconds)}: at most {format_bytes(course.peak)} of a budget of {format_bytes(course.limit)}; "
        f"{loads} load{'s' * (loads != 1)}, {evictions} eviction{'s' * (evictions != 1)}"
    )


class _Picture:
    """Places things; x is seconds, y bytes."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.keys = [tally.key for tally in course.tallies]
        self.seconds = max(course.seconds, 1e-3)
        held = max([course.peak, *(nbytes for _, nbytes in course.process)])
        # A budget far above all that was ever held would flatten everything: it is then said in words at the top.
        self.limit_shown = course.limit <= 4 * held
        self.step, self.top = _byte_ticks(max(held, course.limit if self.limit_shown else 0, 1))
        self.bottom = _TOP + _PLOT
        self.lanes = self.bottom + _GAP
        self.height = self.lanes + _LANE * len(self.keys) + 34

    def x(self, t: float) -> float:
        return _LEFT + t / self.seconds * (_WIDTH - _LEFT - _RIGHT)

    def y(self, nbytes: float) -> float:
        return self.bottom - nbytes / self.top * _PLOT

    def svg(self) -> str:
        style = resources.files("fgvr.evaluation").joinpath("templates", "memory.css").read_text(encoding="utf-8")
        told = escape(summary(self.course))
        parts = [self._axes(), self._stack(), self._process(), self._limit(), self._marks(), self._lanes(), self._legend()]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="memory" viewBox="0 0 {_WIDTH} {self.height}" role="img" aria-label="{told}">'
            f"<title>{told}</title><style>{style}</style>"
            f'<defs><pattern id="memory-loading" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            f'<rect width="3" height="6" class="ground" opacity=".75"/></pattern></defs>'
            f'<rect class="ground" width="{_WIDTH}" height="{self.height}"/>{"".join(parts)}</svg>\n'
        )

    def _axes(self) -> str:
        parts = []
        for i in range(round(self.top / self.step) + 1):
            y = self.y(i * self.step)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_size(i * self.step)}</text>')
        tick = next((step for step in _TIMES if self.seconds / step <= 10), _TIMES[-1])
        for i in range(int(self.seconds / tick + 1e-9) + 1):
            x = self.x(i * tick)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.bottom}" y2="{self.bottom + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 18}" text-anchor="middle">{_duration(i * tick)}</text>')
        return "".join(parts)

    def _stack(self) -> str:
        steps = _thinned(self.course.steps, self.seconds)
        below = [0] * len(steps)
        parts = []
        layers = [(f"fill:var(--m{i % _COLOURS})", "", [s.weights.get(key, 0) for s in steps]) for i, key in enumerate(self.keys)]
        layers += [("", "other", [s.other for s in steps]), ("", "work", [s.work for s in steps])]
        for style, kind, sizes in layers:
            above = [low + size for low, size in zip(below, sizes, strict=True)]
            if any(sizes):
                parts.append(f'<path class="{kind}" style="{style}" d="{self._area(steps, below, above)}"/>')
            below = above
        return "".join(parts)

    def _area(self, steps: Sequence[Step], below: Sequence[int], above: Sequence[int]) -> str:
        ends = [*(s.t for s in steps[1:]), self.seconds]
        forth = [f"L{self.x(t):.1f} {self.y(v):.1f}" for s, end, v in zip(steps, ends, above, strict=True) for t in (s.t, end)]
        back = [f"L{self.x(t):.1f} {self.y(v):.1f}" for s, end, v in zip(steps, ends, below, strict=True) for t in (s.t, end)]
        return f"M{forth[0][1:]}{''.join(forth[1:])}{''.join(reversed(back))}Z"

    def _process(self) -> str:
        spots = " ".join(f"{self.x(t):.1f},{self.y(nbytes):.1f}" for t, nbytes in self.course.process)
        return f'<polyline class="process" points="{spots}"/>' if spots else ""

    def _limit(self) -> str:
        if not self.limit_shown:
            text = f"budget {format_bytes(self.course.limit)}, far above"
            return f'<text class="limit-name" x="{_WIDTH - _RIGHT}" y="{_TOP - 4}" text-anchor="end">{text}</text>'
        path, last = [], None
        for step in self.course.steps:
            if step.limit != last:
                path.append(f"{'M' if last is None else 'H'}{self.x(step.t):.1f}{f' {self.y(step.limit):.1f}' if last is None else ''}")
                if last is not None:
                    path.append(f"V{self.y(step.limit):.1f}")
                last = step.limit
        limit = self.course.steps[0].limit
        text = f'<text class="limit-name" x="{_LEFT + 4}" y="{self.y(limit) - 5:.1f}">budget {_size(limit)}</text>'
        return f'<path class="limit" d="{"".join(path)}H{_WIDTH - _RIGHT}"/>{text}'

    def _marks(self) -> str:
        parts = []
        for t in self.course.borders:
            x = self.x(t)
            parts.append(f'<line class="border" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{self.bottom}"><title>resumed</title></line>')
            parts.append(f'<text x="{x + 4:.1f}" y="{_TOP + 10}">resumed</text>')
        drawn: set[tuple[int, str]] = set()
        for mark in self.course.marks:
            spot = (round(self.x(mark.t)), mark.kind)
            if spot in drawn:
                continue  # two at one place look like one
            drawn.add(spot)
            x, told = self.x(mark.t), escape(f"{mark.kind} {mark.key} at {mark.t:.2f} s. {mark.text}")
            if mark.kind in ("evicted", "parked", "budget"):
                parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{self.bottom}"><title>{told}</title></line>')
            else:
                parts.append(f'<line class="mark bad" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{self.bottom}"/>')
                parts.append(f'<g><title>{told}</title><circle class="badge" cx="{x:.1f}" cy="{_TOP}" r="8"/>')
                parts.append(f'<text class="badge-name" x="{x:.1f}" y="{_TOP + 4.5}" text-anchor="middle">!</text></g>')
        return "".join(parts)

    def _lanes(self) -> str:
        parts = []
        for row, tally in enumerate(self.course.tallies):
            y = self.lanes + row * _LANE
            colour = f"var(--m{row % _COLOURS})"
            parts.append(f'<rect class="lane" x="{_LEFT}" y="{y}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_LANE - 6}" rx="3"/>')
            parts.append(f'<text class="name" x="{_LEFT - 8}" y="{y + 14.5}" text-anchor="end">{escape(tally.role or tally.key)}</text>')
            for span in _merged([s for s in self.course.spans if s.key == tally.key], self.seconds):
                x, width = self.x(span.start), max(0.6, self.x(span.end) - self.x(span.start))
                box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_LANE - 6}"'
                told = escape(f"{span.key} {span.state} from {span.start:.2f} to {span.end:.2f} s")
                shade = ".4" if span.state == "resident" else "1"
                parts.append(f'<rect {box} style="fill:{colour}" opacity="{shade}"><title>{told}</title></rect>')
                if span.state == "loading":
                    parts.append(f'<rect {box} fill="url(#memory-loading)" pointer-events="none"/>')
        return "".join(parts)

    def _legend(self) -> str:
        y, x = self.height - 12, 24.0
        box = '<rect width="14" height="10" y="-9" style="fill:var(--m0)"'
        entries = [
            ('<rect class="work" width="14" height="10" y="-9"/>', "working memory of leases"),
            (f"{box}/>", "in use"),
            (f'{box} opacity=".4"/>', "resident"),
            (f'{box}/><rect width="14" height="10" y="-9" fill="url(#memory-loading)"/>', "loading"),
        ]
        if self.course.process:
            entries.append(('<path class="process" d="M0 -4H16"/>', "held by the process above its base (USS)"))
        if any(mark.kind in ("evicted", "parked") for mark in self.course.marks):
            entries.append(('<path class="mark" d="M7 -11V2"/>', "eviction"))
        parts = []
        for sign, name in entries:
            parts.append(f'<g transform="translate({x:.0f} {y})">{sign}<text x="20">{name}</text></g>')
            x += 20 + 7.0 * len(name) + 18
        return "".join(parts)


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
    """The spans themselves; when there are more than could be told apart, one per run of columns with the same, busiest state."""
    if len(spans) <= columns:
        return list(spans)
    busiest: dict[int, str] = {}
    for span in spans:
        for column in range(int(span.start / seconds * columns), int(span.end / seconds * columns) + 1):
            busiest[column] = min(busiest.get(column, span.state), span.state, key=_BUSY.index)
    merged: list[Span] = []
    for column, state in sorted(busiest.items()):
        start, end = column * seconds / columns, min(seconds, (column + 1) * seconds / columns)
        if merged and merged[-1].state == state and start - merged[-1].end < 0.5 * seconds / columns:
            start = merged.pop().start
        merged.append(Span(spans[0].key, state, start, end))
    return merged


def _byte_ticks(most: int) -> tuple[int, int]:
    """Step and end of an axis from 0 that holds `most` bytes with three to seven round ticks."""
    step = 1
    while most > 6 * step:
        step *= 2
    return step, step * -(-int(most * 1.04) // step)


def _size(nbytes: float) -> str:
    return "0" if not nbytes else format_bytes(nbytes).replace(".00 ", " ").replace(".0 ", " ")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")
