"""Progress on stderr: a bar where a person is watching, else a line now and then. Count, rate, remaining time, what the process holds."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import psutil
from rich import progress as bars
from rich.text import Text

from fgvr.utils.logging import stderr_console
from fgvr.utils.text import format_bytes

T = TypeVar("T")

log = logging.getLogger(__name__)


def track(
    iterable: Iterable[T],
    description: str,
    total: int | None = None,
    *,
    show: bool | None = None,
    weigh: Callable[[T], int] = lambda item: 1,
    every: float = 10.0,
) -> Iterator[T]:
    """The same items, with a bar that shows count, rate, remaining time and the process's memory (RSS). `weigh`: what an item counts for.

    Shown when stderr is a terminal, unless FGVR_PROGRESS=0 (FGVR_PROGRESS=1 or `show` forces it). Nested bars stay silent.
    Elsewhere, such as in a pipe, what takes long says how far it is, in a line of the log every `every` seconds.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # pyright: ignore[reportArgumentType]
    if _wanted() if show is None else show:
        yield from _drawn(iterable, description, total, weigh, bars.MofNCompleteColumn(), _Rate(), bars.TimeRemainingColumn(), _Memory())
    elif os.environ.get("FGVR_PROGRESS") == "0" or show is False:
        yield from iterable
    else:
        yield from _told(iterable, description, total, weigh, every)


def _told(iterable: Iterable[T], description: str, total: int | None, weigh: Callable[[T], int], every: float) -> Iterator[T]:
    start = told = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += weigh(item)
        now = time.monotonic()
        if now - told < every:
            continue
        told, rate = now, done / max(now - start, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
        count = f"{done:,} of {total:,}" if total else f"{done:,}"
        pace = f"{rate:.1f}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s each"
        log.info("%s: %s (%s%s, %s)", description, count, pace, left, format_bytes(psutil.Process().memory_info().rss))


def track_bytes(chunks: Iterable[bytes], description: str, total: int | None, *, done: int = 0) -> Iterator[bytes]:
    """The same chunks, with a bar of megabytes. `total`: of the whole; None = unknown; `done`: of it before the first chunk."""
    if _wanted():
        figures = bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn()
        yield from _drawn(chunks, description, total, len, *figures, done=done)
    else:
        megabytes = None if total is None else total >> 20
        yield from track(chunks, f"{description}, MB", megabytes, weigh=lambda chunk: len(chunk) >> 20)


def _drawn(
    items: Iterable[T], description: str, total: int | None, weigh: Callable[[T], int], *figures: bars.ProgressColumn, done: int = 0
) -> Iterator[T]:
    columns = bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), *figures
    with bars.Progress(*columns, console=stderr_console()) as progress:
        task = progress.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task, weigh(item))


def _wanted() -> bool:
    return {"0": False, "1": True}.get(os.environ.get("FGVR_PROGRESS", ""), stderr_console().is_terminal)


class _Rate(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class _Memory(bars.ProgressColumn):
    max_refresh = 1.0  # seconds; asking the system costs more than drawing

    def render(self, task: bars.Task) -> Text:
        return Text(format_bytes(psutil.Process().memory_info().rss), style="dim")
