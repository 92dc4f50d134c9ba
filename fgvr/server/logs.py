"""A server's log files: what it does, what went wrong, who asked. Dated, a new one each midnight (UTC), the oldest deleted."""

from __future__ import annotations

import logging
import re
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
        return redacted(super().format(record))


def redacted(text: str) -> str:
    return _DATA.sub(r"\1...", _SECRET.sub(r"\1***", text))


def set_up(folder: Path, *, days: int) -> list[logging.Handler]:
    """`server.log` (all), `error.log` (warnings and worse), `access.log`; each with yesterday's as `server.log.2026-11-20`."""
    folder.mkdir(parents=True, exist_ok=True)
    fgvr, asgi, asked = logging.getLogger("fgvr"), logging.getLogger("uvicorn"), logging.getLogger("fgvr.server.access")
    handlers: list[logging.Handler] = []
    for name, level, loggers in (
        ("server.log", logging.INFO, (fgvr, asgi)),
        ("error.log", logging.WARNING, (fgvr, asgi)),
        ("access.log", logging.INFO, (asked,)),
    ):
        handler = TimedRotatingFileHandler(
            folder / name, when="midnight", utc=True, backupCount=days, encoding="utf-8", delay=True, errors="backslashreplace"
        )
        handler.setLevel(level)
        handler.setFormatter(Redacting(_FORM))
        handlers.append(handler)
        for logger in loggers:
            logger.addHandler(handler)
            if logger.getEffectiveLevel() > logging.INFO:
                logger.setLevel(logging.INFO)
    asked.propagate = False
    return handlers


def take_down(handlers: list[logging.Handler]) -> None:
    for name in ("fgvr", "uvicorn", "fgvr.server.access"):
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if h in handlers]:
            logger.removeHandler(handler)
    for handler in handlers:
        handler.close()
