"""Several ways of doing the same work, run in turns so that a busy machine hurts all alike; work counted beside the time.

Of the processor: seconds of all threads of this process. They are what can be quoted where others use the machine, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import Series

Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Way:
    """One way: `run` does all of it once and returns what it counted."""

    name: str
    run: Callable[[], Counts]
    same_work: bool = True  # as the first way; else its ratio stands for other work, and says so


@dataclass(frozen=True, slots=True)
class Lap:
    """What one way took, in milliseconds per item."""

    name: str
    wall: Series
    cpu: Series
    counts: dict[str, float]  # of one run, the last
    steady: bool  # whether every run counted the same
    same_work: bool
    ahead: Series | None = None  # processor time of the first way over this one's, turn by turn

    def line(self) -> str:
        ratio = "" if self.ahead is None else f", {self.ahead:.2f} x{'' if self.same_work else ' (other work)'}"
        counted = ", ".join(f"{name} {value:g}" for name, value in self.counts.items())
        return f"  {self.name:<44} {self.cpu:.1f} ms CPU, {self.wall:.1f} wall{ratio}; {counted}{'' if self.steady else ' (VARIES)'}"

    def figures(self) -> dict[str, Any]:
        ahead = self.ahead.summary() if self.ahead else None
        return {
            "way": self.name,
            "cpu_ms": self.cpu.summary(),
            "wall_ms": self.wall.summary(),
            "counts": self.counts,
            "steady": self.steady,
            "same_work": self.same_work,
            "ahead": ahead,
        }


@dataclass(frozen=True, slots=True)
class Races:
    """What a benchmark reports: races (title -> laps), and what else it found."""

    races: dict[str, list[Lap]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        found = [
            line for title, laps in self.races.items() for line in (f"{title}: median (least to most) per item", *(x.line() for x in laps))
        ]
        return [*found, *self.notes]

    def figures(self) -> dict[str, Any]:
        return {"races": {title: [lap.figures() for lap in laps] for title, laps in self.races.items()}, "notes": self.notes, **self.facts}


def race(ways: Sequence[Way], *, items: int, repeat: int, warm: bool = True) -> list[Lap]:
    """Every way `repeat` times, in turns. `warm`: once before without a clock. The first way is the one the others are compared with."""
    for way in ways if warm else ():
        way.run()
    wall: dict[str, list[float]] = {way.name: [] for way in ways}
    cpu: dict[str, list[float]] = {way.name: [] for way in ways}
    counted: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    for _ in range(repeat):
        for way in ways:
            began, work = time.perf_counter(), time.process_time()
            counted[way.name].append(dict(way.run()))
            wall[way.name].append(1000 * (time.perf_counter() - began) / items)
            cpu[way.name].append(1000 * (time.process_time() - work) / items)
    first = cpu[ways[0].name]
    return [
        Lap(
            way.name,
            Series.of(wall[way.name]),
            Series.of(cpu[way.name]),
            counted[way.name][-1],
            all(found == counted[way.name][0] for found in counted[way.name]),
            way.same_work,
            None if way is ways[0] else Series.of([a / b for a, b in zip(first, cpu[way.name], strict=True)]),
        )
        for way in ways
    ]
