"""Before any handler: who is addressed, how much may come; after it: headers, one log line, figures. Plain ASGI, so that streams stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fgvr.server.http_errors import HttpError, answer
from fgvr.server.settings import Settings

if TYPE_CHECKING:
    from fgvr.server.metrics import Metrics

access = logging.getLogger("fgvr.server.access")
_NEAR = ("localhost", "127.0.0.1", "[::1]", "::1", "testserver")
_COMPUTING = frozenset(
    ("/v1/chat/completions", "/v1/embeddings", "/v1/score", "/v1/match", "/api/v1/classify", "/api/v1/query")
)  # where what cannot be served is refused before it is parsed
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Bodies:
    """Bytes of bodies that come or are being served: at most `most`, and one body more, since the oldest goes on when none is served."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[object, int] = {}
        self._coming: dict[object, None] = {}
        self._changed = asyncio.Event()
        self.waiting = 0

    @property
    def total(self) -> int:
        return sum(self._held.values())

    def begin(self, who: object) -> None:
        self._held[who] = 0
        self._coming[who] = None

    async def add(self, who: object, size: int) -> None:
        """Waits for room; what is not read meanwhile stays with the client."""
        self.waiting += 1
        try:
            while self.total + size > self._most and not self._alone(who):
                await self._changed.wait()
        finally:
            self.waiting -= 1
        self._held[who] += size

    def _alone(self, who: object) -> bool:
        """Nothing is served that would make room by ending, and it is the oldest of those that come."""
        return len(self._held) == len(self._coming) and next(iter(self._coming)) is who

    def whole(self, who: object) -> None:
        self._coming.pop(who, None)
        self._tell()

    def end(self, who: object) -> None:
        self._held.pop(who, None)
        self.whole(who)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Middleware:
    """The outermost layer."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, route_of: Callable[[Scope], str], full: Callable[[], HttpError | None]
    ) -> None:
        """Args: full: why no request that computes gets a place now."""
        self._app, self._settings, self._metrics, self._route_of, self._full = app, settings, metrics, route_of, full
        self._hosts = {*_NEAR, settings.host.lower(), *settings.allowed_hosts}
        self.bodies = Bodies(settings.body_bytes)
        self._any_host = "*" in settings.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, who = time.perf_counter(), 0, object()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None and scope["method"] in ("POST", "PUT", "PATCH"):
                receive, refusal = await self._whole(receive, who)
                if refusal is None and scope["path"] in _COMPUTING:
                    refusal = self._full()
            if refusal is not None:
                await answer(scope["path"], refusal)(scope, receive, sending)
            else:
                await self._bounded(scope, receive, sending)
        except Exception:
            if not status:
                raise
            # Answered and logged by http_errors.install; raised again only for servers that would not know.
        finally:
            self.bodies.end(who)
            took = time.perf_counter() - began
            route = self._route_of(scope)
            self._metrics.requests.labels(scope["method"], route, str(status or 499)).inc()
            self._metrics.duration.labels(route).observe(took)
            access.info("%s %s %s %.1f ms", scope["method"], _printable(scope["path"]), status or "left", 1000 * took)

    def _refusal(self, scope: Scope) -> HttpError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if not self._any_host and name not in self._hosts:  # a page elsewhere may have pointed its own name at this machine
            return HttpError(421, "this server does not go by that name (server.allowed_hosts)", code="wrong_host")
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return HttpError(400, "Content-Length is no number", code="bad_request")
        if int(length) > self._settings.max_body:
            return self._too_large()
        return None

    def _too_large(self) -> HttpError:
        return HttpError(413, f"the body is larger than server.max_body={self._settings.max_body:,} bytes", code="too_large")

    async def _whole(self, receive: Receive, who: object) -> tuple[Receive, HttpError | None]:
        """The body, as one message, when all of it is there: whoever is slow to send takes no place meanwhile."""
        parts: list[bytes] = []
        size, more, waits = 0, True, False
        self.bodies.begin(who)
        try:
            async with asyncio.timeout(self._settings.upload_seconds):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return _replay(message, receive), None
                    part, waits = message.get("body", b""), True
                    await self.bodies.add(who, len(part))
                    waits = False
                    parts.append(part)
                    size, more = size + len(part), message.get("more_body", False)
                    if size > self._settings.max_body:
                        return receive, self._too_large()
        except TimeoutError:
            if waits:
                return receive, HttpError(429, "too many bytes are being served (server.body_bytes)", code="busy", retry=5)
            seconds = self._settings.upload_seconds
            return receive, HttpError(408, f"the body did not come within server.upload_seconds={seconds:g}", code="too_slow")
        self.bodies.whole(who)
        return _replay({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive), None

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A body without a length is counted as it comes."""
        seen, started = 0, False

        async def receiving() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._settings.max_body:
                    raise _TooMuch
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        except _TooMuch:
            if not started:
                await answer(scope["path"], self._too_large())(scope, receive, send)


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving


class _TooMuch(BaseException):
    """Not an Exception: no handler between here and there shall take it for its own."""


def _printable(path: str) -> str:
    return path.encode("ascii", "backslashreplace").decode()[:200].replace("\n", "\\n").replace("\r", "\\r")


def route_template(scope: Any) -> str:
    """`/api/v1/models/{key}/load`, or "other": label values must be few."""
    route = scope.get("route")
    return getattr(route, "path", None) or "other"
