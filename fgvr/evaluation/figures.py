"""Pictures for the report as inline SVG and data URLs. Colours are CSS classes, so that light and dark both work. No network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 26, 14, 48
_FLAT = 0.04


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A named curve; `style` is a CSS class of the page: ours, ceiling, floor."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str


@dataclass(frozen=True, slots=True)
class Point:
    """A named mark."""

    name: str
    x: float
    y: float
    style: str


def chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], points: Sequence[Point] = ()) -> str:
    """A line chart over x in [0, 1] with its legend; y runs over what is shown. Figures are shares, labelled in per cent."""
    ys = np.concatenate([*(line.y for line in lines), [point.y for point in points]])
    ticks = _ticks(float(ys.min()), float(ys.max()))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for tick in ticks:
        x, y = place(0, tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 7}" y="{y + 5:.1f}" text-anchor="end">{_percent(tick)}</text>')
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = place(tick, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 19:.1f}" text-anchor="middle">{_percent(tick)}</text>')
    for line in lines:
        spots = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in _thinned(line.x, line.y))
        parts.append(f'<polyline class="curve {line.style}" points="{spots}"/>')
    for point in points:
        x, y = place(point.x, point.y)
        parts.append(f'<circle class="mark {point.style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    parts.append(f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    told = "; ".join([*(_told(line) for line in lines), *(f"{p.name}: {_percent(p.y)} at {_percent(p.x)}" for p in points)])
    legend = "".join(
        [f'<li class="{line.style}"><i class="stroke"></i>{escape(line.name)}</li>' for line in lines]
        + [f'<li class="{point.style}"><i class="dot"></i>{escape(point.name)}</li>' for point in points]
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span>{escape(y_label)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}. {told}")}">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round values, three to seven of them, that enclose [low, high]; a flat curve gets room on both sides."""
    if high - low < _FLAT:
        low, high = max(0.0, (low + high - _FLAT) / 2), min(1.0, (low + high + _FLAT) / 2)
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        if last - first <= 6:
            break
    return [float(round(i * step, 10)) for i in np.arange(first, last + 1)]


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 200) -> list[tuple[float, float]]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).round().astype(int))
    return list(zip(x[keep].tolist(), y[keep].tolist(), strict=True))


def _told(line: Line) -> str:
    ends = [f"{_percent(float(line.y[i]))} at {_percent(float(line.x[i]))}" for i in (0, -1)]
    return f"{line.name}: from {ends[0]} to {ends[1]}"


def _percent(share: float) -> str:
    return f"{share:.0%}"
