"""A small HTTP server for tests: answers by functions, remembers what it was asked, and can fail, wait and vanish on request."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """`body`: JSON, or bytes as they are."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


class WebFake:
    """`respond` sees each request and returns an Answer; anything else it returns is the JSON of a 200."""

    def __init__(self, respond: Callable[[Asked], Any], port: int = 0) -> None:
        self.asked: list[Asked] = []
        self._respond = respond
        self.open_connections: set[socket.socket] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                fake.open_connections.add(self.connection)

            def finish(self) -> None:
                fake.open_connections.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                fake.answer(self)

            def do_POST(self) -> None:
                fake.answer(self)

            def log_message(self, *args: Any) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        content = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(handler.command, parts.path, query, headers, json.loads(content) if content else None)
        self.asked.append(asked)
        found = self._respond(asked)
        answer = found if isinstance(found, Answer) else Answer(200, found)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        handler.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | answer.headers).items():
            handler.send_header(name, value)
        with suppress(ConnectionError):  # who asked has left, as tests of time-outs and kills do
            handler.end_headers()
            handler.wfile.write(body)

    def close(self) -> None:
        """As a killed process goes: connections are cut, also those that are kept for later requests."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.open_connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)


@contextmanager
def serving(respond: Callable[[Asked], Any], port: int = 0) -> Iterator[WebFake]:
    fake = WebFake(respond, port)
    try:
        yield fake
    finally:
        fake.close()
