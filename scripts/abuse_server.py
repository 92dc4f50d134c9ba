"""What a server stands: abusive clients while another one asks for health; SIGTERM in the middle of it must end with exit 0.

python scripts/abuse_server.py --stops 10 [models=tiny W ...]
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
IDLE = b"POST /api/v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"


def started(words: list[str], home: str) -> tuple[subprocess.Popen[bytes], str, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "discovering.py", "mode=serve", f"server.port={port}", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"FGVR_HOME": home}, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/livez", trust_env=False)
            return process, url, port
        time.sleep(0.2)
    process.kill()
    raise SystemExit("the server does not start")


def abuse(url: str, picture: bytes, ended: threading.Event) -> None:
    while not ended.is_set():
        with suppress(httpx.HTTPError), httpx.Client(base_url=url, trust_env=False, timeout=10) as web:
            web.post("/api/v1/classify", files={"images": ("a.png", picture)})
            web.post("/v1/chat/completions", json={"model": "mllm", "messages": [{"role": "user", "content": "a bird"}]})


def stop(words: list[str], home: str, picture: bytes) -> tuple[int | None, float]:
    process, url, port = started(words, home)
    ended = threading.Event()
    threads = [threading.Thread(target=abuse, args=(url, picture, ended)) for _ in range(8)]
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
    for line in lines:
        line.sendall(IDLE)
    for thread in threads:
        thread.start()
    time.sleep(3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code: int | None = process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        code = None
    took = time.monotonic() - began
    ended.set()
    for thread in threads:
        thread.join()
    for line in lines:
        line.close()
    return code, took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(buffer, "PNG")
    table = Table("stop", "exit code", "seconds", "good")
    good = True
    with tempfile.TemporaryDirectory() as home:
        for i in range(asked.stops):
            code, took = stop(asked.words or ["models=tiny"], home, buffer.getvalue())
            good &= (fine := code == 0 and took <= 15)
            table.add_row(str(i + 1), str(code), f"{took:.1f}", "yes" if fine else "NO")
    Console().print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
