"""One place where log lines are given a look: the `fgvr` logger, on stderr. What libraries say goes to the run's log file."""

import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment

from fgvr.utils.text import printable

_MARK = "fgvr"  # name of the handlers set here, so that a second call replaces them
_BUFFERED = 1000  # records of libraries kept until the run's log file is known


class PlainConsole(Console):
    """A console that shows text as it is: names of classes and files may hold brackets, colons, and bytes that are no UTF-8."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1; `on_terminal` knows better

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

    May be called again: it replaces what an earlier call set up. After `own_terminal`, records of libraries go to `file` only
    (to the terminal as well with `level="debug"`). Where the program around fgvr shows all records by itself, as a notebook after
    `logging.basicConfig()`, it shows ours, and nothing is added that would show them twice.
    """
    chosen = logging.getLevelNamesMapping()[level.upper()]
    least = max(chosen, logging.WARNING) if quiet else chosen
    told = not _terminal_is_ours() and any(_writes_to_terminal(handler) for handler in logging.getLogger().handlers)
    shown = [] if told else [RichHandler(least, stderr_console(), show_path=False)]
    written = [_file_handler(file)] if file is not None else []
    logger = logging.getLogger("fgvr")
    _replace(logger, [*shown, *written])
    logger.setLevel(least if told else min(chosen, logging.INFO) if file is not None else chosen)
    if _terminal_is_ours():
        _redirect_libraries(file, on_terminal=chosen <= logging.DEBUG)
    return logger


def own_terminal() -> None:
    """For the command line: from now on no library writes to the terminal. Python warnings and records of libraries wait for a log file."""
    logging.captureWarnings(True)
    _redirect_libraries(None, on_terminal=False)
    adopt_libraries()


def adopt_libraries() -> None:
    """Take away the terminal handlers that libraries gave their loggers while they were imported. Does nothing before `own_terminal`."""
    if not _terminal_is_ours():
        return
    for name, logger in [("", logging.getLogger()), *logging.root.manager.loggerDict.items()]:
        if not isinstance(logger, logging.Logger) or name.split(".")[0] == "fgvr":
            continue
        for handler in [h for h in logger.handlers if _writes_to_terminal(h)]:
            logger.removeHandler(handler)
            logger.propagate = True


def _redirect_libraries(file: Path | None, *, on_terminal: bool) -> None:
    root = logging.getLogger()
    waiting = next((handler for handler in root.handlers if isinstance(handler, _Waiting)), None) or _Waiting()
    handlers: list[logging.Handler] = [waiting]
    if file is not None:
        handlers = [_file_handler(file)]
        for record in waiting.records:
            handlers[0].handle(record)
    if on_terminal:
        handlers.append(RichHandler(logging.WARNING, stderr_console(), show_path=False))
    for handler in handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: record.name.split(".")[0] != "fgvr")
    _replace(root, handlers)


class _Waiting(logging.Handler):
    """Keeps the latest records until the run's log file is known."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=_BUFFERED)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _replace(logger: logging.Logger, handlers: list[logging.Handler]) -> None:
    for handler in [h for h in logger.handlers if h.get_name() == _MARK and h not in handlers]:
        logger.removeHandler(handler)
        handler.close()
    for handler in handlers:
        handler.set_name(_MARK)
        if handler not in logger.handlers:
            logger.addHandler(handler)


class _LogFile(logging.FileHandler):
    """Ends where the disk is full, and says so once: a log is no reason to stop, and none for a traceback per line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error, ours = sys.exc_info()[1], logging.getLogger("fgvr")
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        for logger in (ours, logging.getLogger()):
            logger.removeHandler(self)
        with suppress(OSError):  # of what it could not write
            self.close()
        ours.warning("%s is written no further (%s)", self.baseFilename, error.strerror or error)


def _file_handler(file: Path) -> logging.FileHandler:
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _terminal_is_ours() -> bool:
    return any(handler.get_name() == _MARK for handler in logging.getLogger().handlers)


def _writes_to_terminal(handler: logging.Handler) -> bool:
    """Whether it is a handler of somebody else that does."""
    stream = getattr(handler, "stream", None)  # not every such handler is a StreamHandler (torch's is not)
    stream = stream or getattr(getattr(handler, "console", None), "file", None)  # one of rich
    theirs = handler.get_name() != _MARK and stream is not None
    return theirs and any(stream is known for known in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))
