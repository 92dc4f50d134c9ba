"""Line charts of a report, drawn by templates/chart.html. Colours are CSS classes, so that light and dark both work."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FLAT = 0.04


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A named curve; `style` is a CSS class of the page: ours, ceiling, floor."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str

    def thinned(self, most: int = 200) -> list[tuple[float, float]]:
        keep = np.unique(np.linspace(0, len(self.x) - 1, min(len(self.x), most)).round().astype(int))
        return list(zip(self.x[keep].tolist(), self.y[keep].tolist(), strict=True))

    @property
    def told(self) -> str:
        first, last = (f"{self.y[i]:.0%} at {self.x[i]:.0%}" for i in (0, -1))
        return f"{self.name}: from {first} to {last}"


@dataclass(frozen=True, slots=True)
class Point:
    """A named mark."""

    name: str
    x: float
    y: float
    style: str


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A line chart over x in [0, 1] with its legend; y runs over what is shown. Figures are shares, labelled in per cent."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    points: Sequence[Point]
    ticks: Sequence[float]  # of y
    width: int = 460
    height: int = 300
    left: int = 56
    right: int = 434
    top: int = 14
    bottom: int = 252

    def x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.bottom - (share - low) / (high - low) * (self.bottom - self.top)

    @property
    def told(self) -> str:
        """The chart in words, for those who cannot see it."""
        points = (f"{p.name}: {p.y:.0%} at {p.x:.0%}" for p in self.points)
        return f"{self.title}. {'; '.join([*(line.told for line in self.lines), *points])}"


def chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], points: Sequence[Point] = ()) -> Chart:
    ys = np.concatenate([*(line.y for line in lines), [point.y for point in points]])
    return Chart(title, x_label, y_label, lines, points, _ticks(float(ys.min()), float(ys.max())))


def _ticks(low: float, high: float) -> list[float]:
    """Round values, three to seven of them, that enclose [low, high]; a flat curve gets room on both sides."""
    if high - low < _FLAT:
        low, high = max(0.0, (low + high - _FLAT) / 2), min(1.0, (low + high + _FLAT) / 2)
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        if last - first <= 6:
            break
    return [float(round(i * step, 10)) for i in np.arange(first, last + 1)]
