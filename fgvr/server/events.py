"""`/api/v1/memory/events`: what happens in the pool, as it happens, to whoever listens."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.server.auth import READ
from fgvr.server.http_errors import HttpError, stopping
from fgvr.server.schemas import codes

router = APIRouter(prefix="/api/v1", tags=["memory"])
ROOM = 256  # events a slow listener may be behind; then it loses the oldest and is told how many
MOST = 32  # listeners
_FREQUENT = ("lease", "return")


@dataclass(eq=False)
class Listener:
    """Used in the loop's thread only. None in the queue: no more comes."""

    leases: bool
    queue: asyncio.Queue[dict[str, Any] | None] = field(default_factory=lambda: asyncio.Queue(ROOM))
    lost: int = 0

    def put(self, record: dict[str, Any] | None) -> None:
        if self.queue.full():
            self.queue.get_nowait()
            self.lost += 1
        self.queue.put_nowait(record)


class Broadcast:
    """From the pool's threads to the loop's listeners. `on_event` and `on_alert` are quick and never wait."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # `close` may come from a signal handler, in the middle of `join`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[Listener] = []
        self._closed = False

    def on_event(self, event: Event) -> None:
        record = {k: v for k, v in asdict(event).items() if k not in ("monotonic", "when") and v not in ("", (), 0, 0.0)}
        self._tell(record | {"kind": event.kind, "time": event.when})

    def on_alert(self, alert: Alert) -> None:
        self._tell(asdict(alert) | {"kind": "alert", "alert": alert.kind})

    def join(self, listener: Listener) -> None:
        """Raises HttpError: too many listen already, or the server is stopping."""
        with self._lock:
            if self._closed:
                raise stopping()
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
        self._closed = True
        self._send(None, lambda listener: True)

    def _tell(self, record: dict[str, Any]) -> None:
        frequent = record["kind"] in _FREQUENT
        self._send(record, lambda listener: listener.leases or not frequent)

    def _send(self, record: dict[str, Any] | None, wanted: Callable[[Listener], bool]) -> None:
        with self._lock:
            listeners = [listener for listener in self._listeners if wanted(listener)]
        if self._loop is not None and listeners and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: [listener.put(record) for listener in listeners])


async def _joined(request: Request, leases: bool = False) -> AsyncIterator[Listener]:
    broadcast: Broadcast = request.app.state.broadcast
    listener = Listener(leases=leases)
    broadcast.join(listener)
    try:
        yield listener
    finally:
        broadcast.leave(listener)


@router.get("/memory/events", dependencies=READ, response_class=EventSourceResponse, responses=codes(400, 401, 503))
async def events(listener: Annotated[Listener, Depends(_joined)]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events, `data:` is JSON with `kind` and `time`. `leases=true`: every lease and return, too."""
    yield ServerSentEvent(comment="listening")
    while (record := await listener.queue.get()) is not None:
        lost, listener.lost = listener.lost, 0
        if lost:
            yield ServerSentEvent(event="lost", data={"kind": "lost", "count": lost})
        yield ServerSentEvent(event=record["kind"], data=record)
