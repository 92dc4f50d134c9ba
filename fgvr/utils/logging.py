"""One place where log lines are given a look: the `fgvr` logger, on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment

from fgvr.utils.text import printable

_MARK = "fgvr"  # name of the handlers set here, so that a second call replaces them


class PlainConsole(Console):
    """A console that shows text as it is: names of classes and files may hold brackets, colons, and bytes that are no UTF-8."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        return (segment._replace(text=printable(segment.text)) for segment in super().render(renderable, options))


@cache
def stderr_console() -> Console:
    """The one console progress bars and log lines share, so that they do not write over each other. Not for results: those go to stdout."""
    return PlainConsole(stderr=True)


def stdout_console(width: int = 140) -> Console:
    """For results. `width`: where the output is no terminal."""
    return PlainConsole(width=None if sys.stdout.isatty() else width)


def setup_logging(*, level: str = "info", quiet: bool = False, file: Path | None = None) -> logging.Logger:
    """Show `fgvr` log lines of `level` and above on stderr (`quiet`: warnings only), and write all of them to `file` as well.

    May be called again: it replaces what an earlier call set up. Other libraries' warnings are shown, too, and none of ours twice: some
    of them call `logging.basicConfig`, which does nothing once the root logger has a handler.
    """
    logger = logging.getLogger("fgvr")
    root = logging.getLogger()
    if not any(handler.get_name() == _MARK for handler in root.handlers):
        others = RichHandler(logging.WARNING, stderr_console(), show_path=False)
        others.set_name(_MARK)
        others.addFilter(lambda record: not record.name.startswith("fgvr"))
        root.addHandler(others)
    for handler in [h for h in logger.handlers if h.get_name() == _MARK]:
        logger.removeHandler(handler)
        handler.close()
    chosen = logging.getLevelNamesMapping()[level.upper()]
    shown: list[logging.Handler] = [RichHandler(max(chosen, logging.WARNING) if quiet else chosen, stderr_console(), show_path=False)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        shown.append(logging.FileHandler(file, encoding="utf-8", errors="backslashreplace"))
        shown[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for handler in shown:
        handler.set_name(_MARK)
        logger.addHandler(handler)
    logger.setLevel(min(chosen, logging.INFO) if file is not None else chosen)
    return logger
