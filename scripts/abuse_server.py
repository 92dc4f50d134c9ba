"""What a server stands: abusive clients while another one asks for health and one classification a second; then stops under load.

python scripts/abuse_server.py --stops 10 [models=tiny W ...]    exit 1 = a limit is missed
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
IDLE = b"POST /api/v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"
READER = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
STALL = 5.0
LATEST, MOST_MEMORY, STOP = 1.0, 512 << 20, 15.0  # seconds of the other client's slowest answer; bytes above the start; seconds


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def web(self, timeout: float = 180) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=timeout)

    def memory(self) -> int:
        """Resident, of the server and its children."""
        root, total = psutil.Process(self.process.pid), 0
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += one.memory_info().rss
        return total


def started(words: list[str], home: str) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-X", "faulthandler", "discovering.py", "mode=serve", f"server.port={port}", f"server.stall={STALL}", *words]
    log = Path(home) / "terminal.txt"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"FGVR_HOME": home}, stderr=file)
    server, until = Server(process, port, log), time.monotonic() + 120
    with server.web() as web:
        while time.monotonic() < until and process.poll() is None:
            with suppress(httpx.TransportError):
                web.get("/livez")  # any answer
                return server
            time.sleep(0.2)
    process.kill()
    raise SystemExit(f"the server does not start: {log.read_text()[-2000:]}")


@dataclass
class Other:
    """The other client: health ten times, and one classification, a second."""

    server: Server
    slowest: dict[str, float] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)

    def ask(self, web: httpx.Client, name: str, small: bytes) -> None:
        began, code = time.monotonic(), 0
        with suppress(httpx.HTTPError):
            if name == "health":
                code = web.get("/health").status_code
            else:
                code = web.post("/api/v1/classify", files={"images": ("a.png", small)}).status_code
        self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - began)
        self.codes[code] = self.codes.get(code, 0) + 1


@contextmanager
def watched(server: Server) -> Iterator[tuple[Other, list[int]]]:
    other, memory, ended = Other(server), [server.memory()], threading.Event()

    def asks(name: str, pause: float) -> None:
        with server.web() as web:
            while not ended.wait(pause):
                other.ask(web, name, SMALL)

    def looks() -> None:
        while not ended.wait(0.02):
            memory.append(server.memory())

    threads = [threading.Thread(target=asks, args=("health", 0.1)), threading.Thread(target=asks, args=("classify", 1.0))]
    threads.append(threading.Thread(target=looks))
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.2)
        yield other, memory
        time.sleep(1.2)
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


SMALL = encoded(Image.effect_noise((96, 96), 60).convert("RGB"), "PNG")


def many_scans(count: int = 3000, side: int = 2000) -> bytes:
    data = encoded(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    starts = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    scan = data[starts[3] : starts[4]].split(b"\xff\xc4")[0]
    return data[: starts[3]] + scan * count + data[starts[3] :]


@contextmanager
def lines(server: Server, count: int, words: bytes, room: int = 0) -> Iterator[list[socket.socket]]:
    made = []
    try:
        for _ in range(count):
            line = socket.socket()
            if room:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            line.connect(("127.0.0.1", server.port))
            line.sendall(words)
            made.append(line)
        yield made
    finally:
        for line in made:
            line.close()


def post(server: Server, path: str, **options: object) -> tuple[int, float]:
    began = time.monotonic()
    with server.web() as web:
        return web.post(path, **options).status_code, time.monotonic() - began  # type: ignore[arg-type]


def chat(messages: object, **more: object) -> bytes:
    return json.dumps({"model": "mllm", "messages": messages, **more}).encode()


def ones(server: Server) -> tuple[str, bool]:
    body = b'{"model": "mllm", "messages": [' + b", ".join([b"1"] * ((4 << 20) // 3)) + b"]}"
    code, took = max((post(server, "/v1/chat/completions", content=body, headers=JSON) for _ in range(3)), key=lambda x: x[1])
    return f"{code} after {took:.2f} s (400, .2 s)", code == 400 and took <= 0.2


def messages(server: Server) -> tuple[str, bool]:
    code, took = post(server, "/v1/chat/completions", content=chat([{"role": "user", "content": "a bird"}] * 10_000), headers=JSON)
    return f"{code} after {took:.2f} s (400)", code == 400


def large(count: int, each: int, size: tuple[int, int]) -> Callable[[Server], tuple[str, bool]]:
    content = encoded(Image.effect_noise((size[0] // 8, size[1] // 8), 60).resize(size).convert("RGB"), "JPEG")
    files = [("images", (f"{i}.jpg", content)) for i in range(each)]

    def abuse(server: Server) -> tuple[str, bool]:
        began = time.monotonic()
        with ThreadPoolExecutor(count) as threads:
            codes = [code for code, _ in threads.map(lambda _: post(server, "/api/v1/classify", files=files), range(count))]
        told = ", ".join(f"{codes.count(code)} x {code}" for code in sorted(set(codes)))
        return f"{told} in {time.monotonic() - began:.0f} s (200 or 429)", set(codes) <= {200, 429}

    return abuse


def scans(server: Server) -> tuple[str, bool]:
    code, took = post(server, "/api/v1/classify", files={"images": ("a.jpg", many_scans())})
    return f"{code} after {took:.1f} s (400, 10 s)", code == 400 and took <= 10


def uploads(server: Server) -> tuple[str, bool]:
    with lines(server, 64, IDLE):
        code, took = post(server, "/api/v1/classify", files={"images": ("a.png", SMALL)})
    return f"others get {code} after {took:.2f} s (200)", code == 200


def readers(server: Server) -> tuple[str, bool]:
    process = psutil.Process(server.process.pid)
    with lines(server, 8, READER, room=4096) as made:
        ports = {line.getsockname()[1] for line in made}

        def open_lines() -> int:
            found = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]
            return sum(one.raddr.port in ports for one in found)

        until = time.monotonic() + 5
        while open_lines() < 8 and time.monotonic() < until:  # the server has to accept them first
            time.sleep(0.02)
        began = time.monotonic()
        while (left := open_lines()) and time.monotonic() - began < STALL + 10:
            time.sleep(0.1)
    took = time.monotonic() - began
    return f"{left} left after {took:.1f} s (0, {STALL + 3:g} s)", not left and took <= STALL + 3


JSON = {"Content-Type": "application/json"}


def stop(words: list[str], home: str, picture: bytes) -> tuple[str, bool]:
    server, ended = started(words, home), threading.Event()

    def abuse() -> None:
        while not ended.is_set():
            with suppress(httpx.HTTPError), server.web(10) as web:
                web.post("/api/v1/classify", files={"images": ("a.png", picture)})
                web.post("/v1/chat/completions", content=chat([{"role": "user", "content": "a bird"}], max_tokens=1024), headers=JSON)

    threads = [threading.Thread(target=abuse) for _ in range(8)]
    with lines(server, 32, IDLE), lines(server, 4, READER, room=4096):
        for thread in threads:
            thread.start()
        time.sleep(4)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        try:
            code: int | None = server.process.wait(40)
        except subprocess.TimeoutExpired:
            server.process.kill()
            code = None
        took = time.monotonic() - began
        ended.set()
        for thread in threads:
            thread.join()
    said = server.log.read_text(errors="replace")
    forced = "ends without it" in said
    if code != 0:
        Console(stderr=True).print(said[-3000:], markup=False)
    note = " by the last resort: a computation still ran" if forced else ""
    return f"exit {code} after {took:.1f} s{note} (0, {STOP:g} s)", code == 0 and took <= STOP


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()
    words = asked.words or ["models=tiny"]
    table = Table("abuse", "what is answered (limit)", "slowest of others", "MiB above the start", "good")
    good = True
    abuses: dict[str, Callable[[Server], tuple[str, bool]]] = {
        "4 MiB of [1, 1, ...]": ones,
        "10,000 messages": messages,
        "40 pictures of 25 megapixels": large(40, 1, (5000, 5000)),
        "JPEG with 3,000 scans": scans,
        "64 idle uploads": uploads,
        "8 stalled readers": readers,
        "64 requests with 3 of 8 megapixels": large(64, 3, (3260, 2450)),
    }
    with tempfile.TemporaryDirectory() as home:
        server = started(words, home)
        try:
            for _ in range(60):  # the base is built, the models are loaded
                if post(server, "/api/v1/classify", files={"images": ("a.png", SMALL)})[0] == 200:
                    break
                time.sleep(1)
            post(server, "/v1/chat/completions", content=chat([{"role": "user", "content": "a bird"}], max_tokens=2), headers=JSON)
            start = server.memory()
            for name, abuse in abuses.items():
                with watched(server) as (other, memory):
                    said, fine = abuse(server)
                above, slowest = max(memory) - start, max(other.slowest.values())
                bounded = "pictures" in name or "requests with" in name  # these fill every place: what is bounded is the memory
                fine &= above <= MOST_MEMORY and (bounded or slowest <= LATEST) and 0 not in other.codes
                slow = ", ".join(f"{key} {value:.2f} s" for key, value in other.slowest.items())
                codes = ", ".join(f"{n} x {code}" for code, n in sorted(other.codes.items()))
                table.add_row(name, said, f"{slow}; {codes}", f"{above >> 20} (512)", "yes" if fine else "NO")
                good &= fine
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(40)
    picture = encoded(Image.new("RGB", (5000, 5000)), "PNG")
    with tempfile.TemporaryDirectory() as home:
        for i in range(asked.stops):
            said, fine = stop(words, home, picture)
            table.add_row(f"stop {i + 1}", said, "", "", "yes" if fine else "NO")
            good &= fine
    Console(width=160).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
