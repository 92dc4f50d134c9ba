"""Progress on stderr: a bar where a person is watching, else a line now and then. Count, rate, remaining time, what the process holds."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import psutil
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
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
    console = stderr_console()
    if not (_wanted(console.is_terminal) if show is None else show):
        yield from (
            iterable if os.environ.get("FGVR_PROGRESS") == "0" or show is False else _told(iterable, description, total, weigh, every)
        )
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), _Memory())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        for item in iterable:
            yield item
            progress.advance(task, weigh(item))


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
    console = stderr_console()
    if not _wanted(console.is_terminal):
        yield from track(
            chunks, f"{description}, MB", None if total is None else total >> 20, show=None, weigh=lambda chunk: len(chunk) >> 20
        )
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, completed=done)
        for chunk in chunks:
            yield chunk
            progress.advance(task, len(chunk))


def _wanted(terminal: bool) -> bool:
    return {"0": False, "1": True}.get(os.environ.get("FGVR_PROGRESS", ""), terminal)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class _Memory(ProgressColumn):
    max_refresh = 1.0  # seconds; asking the system costs more than drawing

    def render(self, task: Task) -> Text:
        return Text(format_bytes(psutil.Process().memory_info().rss), style="dim")
