"""A server's log files: what it does, what went wrong, who asked. Dated, a new one each midnight (UTC), the oldest deleted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path

_FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECRET = re.compile(
    r"(?i)((?:token|api[_-]?key|password|authorization)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+|basic\s+)?|bearer\s+)[^\s\"',;&]{4,}"
)
_DATA = re.compile(r"(data:image/[\w.+-]+;base64,)[\w+/=]{16,}")


class Redacting(logging.Formatter):
    """No token and no picture gets into a file, whoever logs it."""

    def format(self, record: logging.LogRecord) -> str:
        return _DATA.sub(r"\1...", _SECRET.sub(r"\1***", super().format(record)))


@contextmanager
def written(folder: Path, *, days: int) -> Iterator[None]:
    """`server.log` (all), `error.log` (warnings and worse), `access.log`; each with yesterday's as `server.log.2026-11-20`."""
    fgvr, asgi, asked = logging.getLogger("fgvr"), logging.getLogger("uvicorn"), logging.getLogger("fgvr.server.access")
    files = {
        "server.log": (logging.INFO, (fgvr, asgi)),
        "error.log": (logging.WARNING, (fgvr, asgi)),
        "access.log": (logging.INFO, (asked,)),
    }
    added: list[tuple[logging.Logger, logging.Handler]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, (level, loggers) in files.items():
        handler = TimedRotatingFileHandler(
            folder / name, when="midnight", utc=True, backupCount=days, encoding="utf-8", delay=True, errors="backslashreplace"
        )
        handler.setLevel(level)
        handler.setFormatter(Redacting(_FORM))
        for logger in loggers:
            logger.addHandler(handler)
            added.append((logger, handler))
            if logger.getEffectiveLevel() > logging.INFO:
                logger.setLevel(logging.INFO)
    asked.propagate = False
    try:
        yield
    finally:
        asked.propagate = True
        for logger, handler in added:
            logger.removeHandler(handler)
            handler.close()
