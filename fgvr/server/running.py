"""A process that serves until it is told to stop: SIGTERM drains and ends with 0, a second one does not wait; Ctrl-C is an interrupt."""

import asyncio
import contextlib
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fgvr.errors import ConfigError
from fgvr.server.app import Server
from fgvr.server.settings import Settings, Tokens
from fgvr.utils.running_server import announced

log = logging.getLogger(__name__)
_SWITCH = 0.0005  # seconds a computing thread keeps the interpreter while the loop wants it; Python's own 5 ms make every socket wait

_STOPPED = "fgvr serve has stopped; the same command starts it again."


class Process(uvicorn.Server):
    """Drains on the first signal."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._ours = server
        self.interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted |= sig == signal.SIGINT
        self.force_exit |= self.should_exit
        self.should_exit = True
        self._ours.drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again: a drained server has ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def serve(server: Server, settings: Settings, tokens: Tokens, home: Path | None = None) -> None:
    """Until a signal. A file in `home` tells other terminals where it is.

    Raises ConfigError: the address cannot be had; KeyboardInterrupt with the last words after Ctrl-C."""
    process = Process(config_of(server, settings), server)
    written = log_files(settings.logs, days=settings.log_days) if settings.logs is not None else contextlib.nullcontext()
    with _listen(settings) as listening, written:
        sys.setswitchinterval(_SWITCH)
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        found = announced(home, address, tokens.admin) if home is not None else contextlib.nullcontext()
        with process.capture_signals(), found:  # first: whoever reads the address may already send a signal
            _announce(address, settings, tokens)
            process.run(sockets=[listening])
    if process.interrupted:
        raise KeyboardInterrupt(_STOPPED)
    sys.stderr.write(f"{_STOPPED}\n")


def config_of(server: Server, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        server.asgi,
        lifespan="on",
        http=protocol_of(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16,
    )


def _listen(settings: Settings) -> socket.socket:
    address = (settings.host, settings.port)
    try:
        return socket.create_server(address, family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET, backlog=2048)
    except OSError as error:
        why = str(error.strerror or error).split(" (while")[0]
        raise ConfigError(f"{settings.host}:{settings.port} cannot be had ({why}); write server.port=8001") from None


def _announce(address: str, settings: Settings, tokens: Tokens) -> None:
    """On stderr alone: a token shown here must not get into a file."""
    lines = [f"fgvr serves at {address}"]
    if settings.host not in ("127.0.0.1", "::1", "localhost") and tokens.reader is None:
        lines.append("WARNING: everybody who can reach this machine may use it: set FGVR_TOKEN")
    if tokens.made:
        lines.append(f"admin token (made for this run, shown once; set FGVR_ADMIN_TOKEN to choose it): {tokens.admin}")
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
    log.info("serving at %s", address)


# --- connections: how many may be open, and for how long one may ask for nothing or leave its answer unread ----------------------

_SEND_BUFFER = 1 << 16  # bytes


def protocol_of(settings: Settings) -> type[asyncio.Protocol]:
    """Uvicorn's protocol with `server.stall`, `server.upload_seconds` and `server.max_connections`."""

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        transport: asyncio.Transport
        loop: asyncio.AbstractEventLoop
        connections: set[Any]
        cycle: Any
        _stalled: asyncio.TimerHandle | None = None
        _silent: asyncio.TimerHandle | None = None
        begun: float = 0.0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if (line := transport.get_extra_info("socket")) is not None:  # else the kernel takes megabytes that nobody reads
                line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self.begun = self.loop.time()
            self._silent = self.loop.call_later(settings.upload_seconds, self._drop_if_idle)
            others = [one for one in self.connections if one is not self and not one.transport.is_closing()]
            if len(others) >= settings.max_connections:
                least = min(others, key=lambda one: (one.needs, one.begun))
                (least if least.needs < 2 else self).transport.abort()

        @property
        def needs(self) -> int:
            """0: no request, or half a head; 1: a body is coming; 2: a request is being answered."""
            if self.cycle is None or self.cycle.response_complete:
                return 0
            return 1 if self.cycle.more_body and not self.cycle.response_started else 2

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stalled is None:
                self._stalled = self.loop.call_later(settings.stall, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            if self._silent is not None:
                self._silent.cancel()
            super().connection_lost(exc)

        def _cancel(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _drop_if_idle(self) -> None:
            if self.cycle is None:  # no head in all that time; later ones have the keep-alive limit
                self.transport.abort()

    return Bounded


# --- log files: dated, a new one each midnight (UTC), the oldest deleted ---------------------------------------------------------

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
def log_files(folder: Path, *, days: int) -> Iterator[None]:
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
