"""`/api/v1/memory/events`: what happens in the pool, as it happens, to whoever listens."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from fgvr.runtime.alerts import Alert
from fgvr.runtime.events import Event
from fgvr.server.auth import may_read
from fgvr.server.http_errors import HttpError
from fgvr.server.schemas import codes

router = APIRouter(prefix="/api/v1", tags=["memory"])
ROOM = 256  # events a slow listener may be behind; then it loses the oldest and is told how many
MOST = 32  # listeners
_PING = 15.0  # seconds of silence after which a comment is sent, so that both sides see whether the other is there
_FREQUENT = ("lease", "return")


class Broadcast:
    """From the pool's threads to the loop's listeners. `hear` and `alert` are quick and never wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ears: list[_Ear] = []
        self.closed = False

    def hear(self, event: Event) -> None:
        record = {k: v for k, v in asdict(event).items() if k != "monotonic" and v not in ("", (), 0, 0.0)}
        record["kind"], record["time"] = event.kind, record.pop("when", event.when)
        self._tell(record, event.kind in _FREQUENT)

    def alert(self, alert: Alert) -> None:
        self._tell(asdict(alert) | {"kind": "alert", "alert": alert.kind}, frequent=False)

    def listen(self, *, leases: bool) -> _Ear:
        """Raises HttpError: too many listen already."""
        ear = _Ear(leases)
        with self._lock:
            if len(self._ears) >= MOST:
                raise HttpError(503, f"{MOST} listen already", code="busy", retry=10)
            self._loop = asyncio.get_running_loop()
            self._ears.append(ear)
        return ear

    def leave(self, ear: _Ear) -> None:
        with self._lock:
            if ear in self._ears:
                self._ears.remove(ear)

    @property
    def listeners(self) -> int:
        return len(self._ears)

    def close(self) -> None:
        """Every stream ends."""
        self.closed = True
        with self._lock:
            for ear in self._ears:
                ear.wake.set()

    def _tell(self, record: dict[str, Any], frequent: bool) -> None:
        with self._lock:
            loop, ears = self._loop, [ear for ear in self._ears if ear.leases or not frequent]
        if loop is not None and ears and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: [ear.take(record) for ear in ears])


class _Ear:
    def __init__(self, leases: bool) -> None:
        self.leases = leases
        self.wake = asyncio.Event()
        self._waiting: list[dict[str, Any]] = []
        self._lost = 0

    def take(self, record: dict[str, Any]) -> None:
        if len(self._waiting) >= ROOM:
            self._waiting.pop(0)
            self._lost += 1
        self._waiting.append(record)
        self.wake.set()

    def given(self) -> list[dict[str, Any]]:
        found, self._waiting = self._waiting, []
        lost, self._lost = self._lost, 0
        self.wake.clear()
        return [{"kind": "lost", "count": lost}, *found] if lost else found


@router.get(
    "/memory/events",
    dependencies=[Depends(may_read)],
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Every load, eviction and alert"}, **codes(400, 401, 503)},
)
async def events(request: Request, leases: bool = False) -> StreamingResponse:
    """Server-sent events, `data:` is JSON with `kind` and `time`. `leases=true`: every lease and return, too."""
    broadcast: Broadcast = request.app.state.broadcast
    ear = broadcast.listen(leases=leases)
    return _Listening(broadcast, ear)


class _Listening(StreamingResponse):
    """Stops listening however it ends."""

    def __init__(self, broadcast: Broadcast, ear: _Ear) -> None:
        super().__init__(_lines(broadcast, ear), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._broadcast, self._ear = broadcast, ear

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._broadcast.leave(self._ear)


async def _lines(broadcast: Broadcast, ear: _Ear) -> AsyncIterator[bytes]:
    yield b": listening\n\n"
    while not broadcast.closed:
        try:
            await asyncio.wait_for(ear.wake.wait(), _PING)
        except TimeoutError:
            yield b": still here\n\n"
        for record in ear.given():
            yield f"event: {record['kind']}\ndata: {json.dumps(record)}\n\n".encode()
