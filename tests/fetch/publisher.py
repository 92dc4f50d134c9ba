"""A publisher's server on this machine: answers ranges, breaks off when told to, and writes down what was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Halfway(dict[str, int]):
    """For `break_after`: a file breaks off after its bytes, and then brings nothing more."""

    def pop(self, path: str, *_: object) -> int | None:
        if path not in self:
            return None
        found, self[path] = self[path], 0
        return found


@dataclass
class Publisher:
    """`files`: path -> content. `break_after`: path -> bytes after which the connection is cut, once."""

    files: dict[str, bytes]
    break_after: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    ranges: bool = True
    headers: dict[str, dict[str, str]] = field(default_factory=dict)  # path -> more of them; "*": of every answer
    url: str = ""


@contextmanager
def publishing(publisher: Publisher) -> Iterator[Publisher]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            asked = self.headers.get("Range", "")
            publisher.asked.append((self.command, self.path, asked))
            content = publisher.files.get(self.path)
            if content is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self._more()
                return
            begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and publisher.ranges else 0
            if begin >= len(content) > 0:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self._more()
            if not body:
                return
            cut = publisher.break_after.pop(self.path, None)
            self.wfile.write(content[begin : begin + cut] if cut is not None else content[begin:])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

        def _more(self) -> None:
            for name, value in {**publisher.headers.get("*", {}), **publisher.headers.get(self.path, {})}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    publisher.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield publisher
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
