"""`/api/v1/memory/events`: what happens in the pool, as it happens, to whoever listens."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.server.auth import READ
from fgvr.server.http_errors import HttpError
from fgvr.server.schemas import codes

router = APIRouter(prefix="/api/v1", tags=["memory"])
ROOM = 256  # events a slow listener may be behind; then it loses the oldest and is told how many
MOST = 32  # listeners
_PING = 15.0  # seconds of silence after which a comment is sent, so that both sides see whether the other is there
_FREQUENT = ("lease", "return")


class Listener:
    """What it has not been told yet. Used in the loop's thread only."""

    def __init__(self, *, leases: bool) -> None:
        self.leases = leases
        self.wake = asyncio.Event()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=ROOM)
        self._lost = 0

    def put(self, record: dict[str, Any]) -> None:
        self._lost += len(self._waiting) == ROOM
        self._waiting.append(record)
        self.wake.set()

    def take(self) -> list[dict[str, Any]]:
        found, lost = list(self._waiting), self._lost
        self._waiting.clear()
        self._lost = 0
        self.wake.clear()
        return [{"kind": "lost", "count": lost}, *found] if lost else found


class Broadcast:
    """From the pool's threads to the loop's listeners. `on_event` and `on_alert` are quick and never wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[Listener] = []
        self.closed = False

    def on_event(self, event: Event) -> None:
        record = {k: v for k, v in asdict(event).items() if k not in ("monotonic", "when") and v not in ("", (), 0, 0.0)}
        self._tell(record | {"kind": event.kind, "time": event.when})

    def on_alert(self, alert: Alert) -> None:
        self._tell(asdict(alert) | {"kind": "alert", "alert": alert.kind})

    def join(self, listener: Listener) -> None:
        """Raises HttpError: too many listen already."""
        with self._lock:
            if len(self._listeners) >= MOST:
                raise HttpError(503, f"{MOST} listen already", code="busy", retry=10)
            self._loop = asyncio.get_running_loop()
            self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        with self._lock:
            self._listeners.remove(listener)

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def close(self) -> None:
        """Every stream ends."""
        self.closed = True
        with self._lock:
            for listener in self._listeners:
                listener.wake.set()

    def _tell(self, record: dict[str, Any]) -> None:
        frequent = record["kind"] in _FREQUENT
        with self._lock:
            loop, listeners = self._loop, [one for one in self._listeners if one.leases or not frequent]
        if loop is not None and listeners and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: [one.put(record) for one in listeners])


async def _joined(request: Request, leases: bool = False) -> AsyncIterator[Listener]:
    broadcast: Broadcast = request.app.state.broadcast
    listener = Listener(leases=leases)
    broadcast.join(listener)
    try:
        yield listener
    finally:
        broadcast.leave(listener)


@router.get(
    "/memory/events",
    dependencies=READ,
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Every load, eviction and alert"}, **codes(400, 401, 503)},
)
async def events(request: Request, listener: Annotated[Listener, Depends(_joined)]) -> StreamingResponse:
    """Server-sent events, `data:` is JSON with `kind` and `time`. `leases=true`: every lease and return, too."""
    lines = _lines(request.app.state.broadcast, listener)
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _lines(broadcast: Broadcast, listener: Listener) -> AsyncIterator[bytes]:
    yield b": listening\n\n"
    while not broadcast.closed:
        try:
            await asyncio.wait_for(listener.wake.wait(), _PING)
        except TimeoutError:
            yield b": still here\n\n"
        for record in listener.take():
            yield f"event: {record['kind']}\ndata: {json.dumps(record)}\n\n".encode()
