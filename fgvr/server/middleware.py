"""Before any handler: who is addressed, how much may come; after it: headers, one log line, figures. Plain ASGI, so that streams stream."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fgvr.server.background import in_thread
from fgvr.server.http_errors import HttpError, answer, bad_request
from fgvr.server.metrics import Metrics
from fgvr.server.settings import Settings

access = logging.getLogger("fgvr.server.access")
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1", "testserver")
_COMPUTING = frozenset(
    ("/v1/chat/completions", "/v1/embeddings", "/v1/score", "/v1/match", "/api/v1/classify", "/api/v1/query")
)  # where what cannot be served is refused before it is parsed
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class BodyBudget:
    """Bytes of bodies that come or are being served: at most `most`, and one body more, since the oldest goes on when none is served."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[object, int] = {}
        self._coming: dict[object, None] = {}
        self._changed = asyncio.Event()

    @property
    def total(self) -> int:
        return sum(self._held.values())

    def begin(self, who: object) -> None:
        self._held[who] = 0
        self._coming[who] = None

    async def add(self, who: object, size: int) -> None:
        """Waits for room; what is not read meanwhile stays with the client."""
        while not self.has_room(size) and not self._alone(who):
            await self._changed.wait()
        self._held[who] += size

    def has_room(self, size: int) -> bool:
        return self.total + size <= self._most

    def _alone(self, who: object) -> bool:
        """Nothing is served that would make room by ending, and it is the oldest of those that come."""
        return len(self._held) == len(self._coming) and next(iter(self._coming)) is who

    def complete(self, who: object) -> None:
        self._coming.pop(who, None)
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self, who: object) -> None:
        self._held.pop(who, None)
        self.complete(who)


class Middleware:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, why_full: Callable[[], HttpError | None]) -> None:
        """Args: why_full: why no request that computes gets a slot now."""
        self._app, self._settings, self._metrics, self._why_full = app, settings, metrics, why_full
        self._hosts = {*_OWN_NAMES, settings.host.lower(), *settings.allowed_hosts}
        self.bodies = BodyBudget(settings.body_bytes)

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
            headers = Headers(scope=scope)
            self._check_head(headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._read_body(receive, who)
                if body and not headers.get("content-type", "").startswith("multipart/form-data"):
                    large = len(body) > _LARGE
                    await in_thread(check_json, body, self._settings) if large else check_json(body, self._settings)
                receive = _replay(body, receive)
                del body
                if scope["path"] in _COMPUTING and (error := self._why_full()) is not None:
                    raise error
            await self._app(scope, receive, sending)
        except HttpError as error:
            await answer(scope["path"], error)(scope, receive, sending)
        except Exception:
            if not status:
                raise
            # Answered and logged by http_errors.install; raised again only for servers that would not know.
        finally:
            self.bodies.end(who)
            took = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", None) or "other"  # the template: label values must be few
            self._metrics.requests.labels(scope["method"], route, str(status or 499)).inc()
            self._metrics.duration.labels(route).observe(took)
            access.info("%s %s %s %.1f ms", scope["method"], ascii(scope["path"])[1:-1][:200], status or "left", 1000 * took)

    def _check_head(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in self._hosts and "*" not in self._hosts:  # a page elsewhere may have pointed its own name at this machine
            raise HttpError(421, "this server does not go by that name (server.allowed_hosts)", code="wrong_host")
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise bad_request("Content-Length is no number", code="bad_request")
        self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        if size > self._settings.max_body:
            raise HttpError(413, f"the body is larger than server.max_body={self._settings.max_body:,} bytes", code="too_large")

    async def _read_body(self, receive: Receive, who: object) -> bytes:
        """All of it: whoever is slow to send takes no slot meanwhile."""
        parts: list[bytes] = []
        size, more, waited = 0, True, False
        self.bodies.begin(who)
        try:
            async with asyncio.timeout(self._settings.upload_seconds):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise HttpError(499, "the client has left", code="left")
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    self._check_size(size)
                    waited |= not self.bodies.has_room(len(part))
                    await self.bodies.add(who, len(part))
                    parts.append(part)
        except TimeoutError:
            if waited:  # the time is not, or not only, the client's
                raise HttpError(429, "too many bytes are being served (server.body_bytes)", code="busy", retry=5) from None
            seconds = self._settings.upload_seconds
            raise HttpError(408, f"the body did not come within server.upload_seconds={seconds:g}", code="too_slow") from None
        self.bodies.complete(who)
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving


_LARGE = 1 << 16
_CHUNK = 1 << 20
_KEYS = 64  # of one object
_MARKS = tuple(b",[{")  # each begins a value
_MARKS_PER_ITEM = 32
_LISTS = {"messages": "max_messages"} | dict.fromkeys(("input", "continuations", "images", "texts", "names", "models"), "max_items")


def check_json(data: bytes, settings: Settings) -> None:
    """Raises HttpError (400) for what is no JSON or has more in it than any request needs."""
    most = settings.max_prompt_chars + _MARKS_PER_ITEM * (settings.max_messages + settings.max_items)
    if _has_more_marks(data, most):
        raise bad_request(f"the body has too many values and commas: at most {most:,} in one request", code="too_many_values")
    try:
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is no JSON: byte {error.start} is no UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise bad_request(message, code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    except ValueError:  # an integer of thousands of digits
        raise bad_request("the body has a number with too many digits", code="invalid_json") from None
    for name, limit in _LISTS.items():
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, list) and len(value) > getattr(settings, limit):
            raise bad_request(f"{name}: {len(value):,} items, at most {getattr(settings, limit):,} (server.{limit})", name)


def _has_more_marks(data: bytes, most: int) -> bool:
    """Counted in the raw bytes, texts included: quick, and never too few."""
    values, seen = np.frombuffer(data, np.uint8), 0
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        seen += sum(int(np.count_nonzero(chunk == mark)) for mark in _MARKS)
        if seen > most:
            return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers of JSON differ in which of two equal keys they take; so neither is."""
    if len(pairs) > _KEYS:
        raise bad_request(f"an object of the body has {len(pairs):,} keys, at most {_KEYS}", code="too_many_values")
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1).encode("utf-8", "replace").decode()[:200]
        raise bad_request(f"{twice!r} stands twice in one object", twice, "invalid_json")
    return found
