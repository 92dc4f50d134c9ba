"""Connections: how many may be open, and for how long one may ask for nothing or leave its answer unread."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fgvr.server.settings import Settings

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
