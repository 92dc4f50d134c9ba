"""Clients that ask for too much, or too slowly: others are served meanwhile, and nothing is left behind."""

from __future__ import annotations

import gc
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from fgvr.errors import KnowledgeError
from fgvr.server.decode_pool import Decoders, Worker
from fgvr.server.settings import Settings
from fgvr.types import Prediction, Sample
from fgvr.utils.images import REDUCE_ABOVE, read_image

from .conftest import FakeRecognizer, Serve, Served, chat, data_url, idle_failures, png, until

ROOT = Path(__file__).resolve().parents[2]
SLOW = b"POST /api/v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"


@contextmanager
def sockets(served: Served, count: int, words: bytes, room: int = 0) -> Iterator[list[socket.socket]]:
    with ExitStack() as lines:
        made = []
        for _ in range(count):
            line = lines.enter_context(socket.socket())
            if room:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            line.settimeout(15)
            line.connect(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
            line.sendall(words)
            made.append(line)
        yield made


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def many_scans(count: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose fourth scan, which goes over every coefficient, is repeated."""
    data = encoded(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    starts = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    scan = data[starts[3] : starts[4]].split(b"\xff\xc4")[0]
    return data[: starts[3]] + scan * count + data[starts[3] :]


def closed(line: socket.socket) -> bool:
    try:
        return line.recv(10) == b""
    except ConnectionResetError:
        return True


def test_a_picture_that_takes_too_long_is_refused_and_the_next_one_decoded(serve: Serve) -> None:
    served = serve(decode_seconds=0.25)
    began = time.monotonic()
    slow = served.post("/api/v1/classify", files={"images": ("slow.jpg", many_scans(180, side=4400), "image/jpeg")})
    assert slow.status_code == 400 and time.monotonic() - began < 30
    assert "images.0" in slow.text and "server.decode_seconds=0.25" in slow.text
    small = (served.post("/api/v1/classify", files={"images": ("a.png", png(), "image/png")}) for _ in range(8))
    assert any(answer.status_code == 200 for answer in small), "a new process may need a few tries to begin"


def test_a_jpeg_in_thousands_of_passes_is_refused_by_their_number(serve: Serve) -> None:
    told = serve().post("/api/v1/classify", files={"images": ("slow.jpg", many_scans(3000, side=400), "image/jpeg")})
    assert told.status_code == 400 and "3,0" in told.text and "passes" in told.text


def test_what_a_phone_appends_to_a_picture_is_no_pass(serve: Serve) -> None:
    film = encoded(Image.new("RGB", (64, 64)), "JPEG") + b"\xff\xda\x00\x08" * 1000
    assert serve().post("/api/v1/classify", files={"images": ("moving.jpg", film, "image/jpeg")}).status_code == 200


def test_a_picture_that_never_fits_is_refused_by_name(serve: Serve) -> None:
    served = serve(decode_bytes=1 << 20)
    told = served.post("/v1/chat/completions", chat("what", data_url(png(600, 600))))
    assert told.status_code == 400 and "server.decode_bytes=1,048,576" in told.text and "messages.0" in told.text
    assert served.post("/v1/chat/completions", chat("what", data_url(), max_tokens=1)).status_code == 200


def test_pictures_wait_for_the_budget_and_all_are_answered(serve: Serve) -> None:
    served = serve(decode_bytes=4 << 20)
    content = encoded(Image.new("RGB", (600, 600)), "PNG")
    with highest(lambda: served.server.engine.decoders.used) as seen, ThreadPoolExecutor(12) as threads:
        codes = list(threads.map(lambda _: served.post("/api/v1/classify", files={"images": ("a.png", content)}).status_code, range(12)))
    assert set(codes) == {200}
    assert 0 < max(seen) <= 4 << 20
    until(lambda: served.server.engine.decoders.used == 0)


@contextmanager
def highest(read: Callable[[], int]) -> Iterator[list[int]]:
    """A figure, looked at every millisecond while the block runs."""
    seen, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.001):
            seen.append(read())

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield seen
    finally:
        ended.set()
        watching.join()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "PPM"])
def test_the_server_reads_a_picture_as_everybody_does(form: str) -> None:
    decoders, quick = Decoders(Settings(decode_seconds=30.0)), {"compress_level": 1} if form == "PNG" else {}
    try:
        for size, kept in (((1000, 700), True), ((4000, 3000), False)):
            data = encoded(Image.effect_noise((100, 70), 50).resize(size).convert("RGB"), form, **quick)
            found = decoders.decode("a request", data, size, "RGB")
            decoders.leave("a request")
            assert decoders.used == 4 * found.image.width * found.image.height, "as long as somebody holds it"
            here, *hashes = read_image(data)
            assert [found.sha256, found.content] == hashes and found.image.tobytes() == here.tobytes()
            assert (found.image.size == size) is kept is (found.sha256 == found.content)
            assert here.width * here.height <= REDUCE_ABOVE and abs(here.width / here.height - size[0] / size[1]) < 0.01
            del found
            until(lambda: decoders.used == 0)
    finally:
        decoders.close()


def test_a_decoding_process_ends_with_its_parent() -> None:
    code = (
        "import os, signal\nfrom fgvr.server.decode_pool import Worker\nworker = Worker(1000)\n"
        "print(worker.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_stop_leaves_no_decoding_process(serve: Serve) -> None:
    served = serve()
    assert served.post("/api/v1/classify", files={"images": ("a.png", png(), "image/png")}).status_code == 200
    assert _decoding()
    served.stop()
    assert not _decoding()


def _decoding() -> list[psutil.Process]:
    alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in alive if any("spawn_main" in word for word in one.cmdline())]


def test_idle_uploads_take_no_place_and_end_with_408(serve: Serve) -> None:
    served = serve(max_inflight=4, upload_seconds=1.0)
    classify = SLOW.replace(b"query", b"classify").replace(b"application/json", b"multipart/form-data; boundary=x")
    with sockets(served, 32, SLOW) as lines, sockets(served, 32, classify) as more:
        assert served.post("/api/v1/query", {"question": "what"}).status_code == 200
        until(lambda: served.server.engine.inflight == 0)  # the reply may be read before its slot is given back
        for line in (*lines, *more):
            assert b" 408 " in line.recv(4096).split(b"\r\n")[0]


def test_connections_are_bounded_and_those_that_ask_for_nothing_go_first(serve: Serve) -> None:
    served = serve(max_connections=10, upload_seconds=60.0)
    with sockets(served, 5, SLOW) as uploads:
        until(lambda: [one.needs for one in served.process.server_state.connections].count(1) == 5)  # type: ignore[union-attr]
        with sockets(served, 15, b"GET /hea") as heads:
            _check_order(served, uploads, heads)
    with sockets(served, 30, SLOW):
        assert served.get("/health").status_code == 200, "uploads go next"


def _check_order(served: Served, uploads: list[socket.socket], heads: list[socket.socket]) -> None:
    assert served.get("/health").status_code == 200
    assert all(closed(line) for line in heads[:5]), "the oldest of them are closed"
    for line in uploads:
        line.settimeout(0.05)
        with pytest.raises(TimeoutError):
            line.recv(1)


def test_a_silent_connection_is_closed(serve: Serve) -> None:
    with sockets(serve(upload_seconds=0.5), 3, b"GET / HT") as lines:
        assert all(closed(line) for line in lines)


def test_readers_that_stop_reading_are_dropped(serve: Serve) -> None:
    served = serve(stall=1.0)
    with sockets(served, 8, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200, room=4096):
        time.sleep(0.3)
        until(lambda: not served.process.server_state.connections)
        assert served.get("/health").status_code == 200


def test_new_keys_are_read_as_bytes_and_seconds() -> None:
    import dataclasses

    found = Settings.of(dataclasses.asdict(Settings()) | {"decode_bytes": "64MiB", "stall": 5})
    assert (found.decode_bytes, found.stall) == (64 << 20, 5.0)


def test_requests_that_hold_pictures_end_although_all_of_them_want_more(serve: Serve) -> None:
    served = serve(decode_bytes=9 << 20)  # one of these pictures takes 6 million bytes, and 1.44 million when it is decoded
    content = encoded(Image.new("RGB", (600, 600)), "PNG")
    files = [("images", (f"{i}.png", content)) for i in range(4)]
    with highest(lambda: served.server.engine.decoders.used) as seen, ThreadPoolExecutor(12) as threads:
        codes = list(threads.map(lambda _: served.post("/api/v1/classify", files=files).status_code, range(12)))
    assert set(codes) == {200}
    assert max(seen) < 14_000_000, "beyond the budget one picture is decoded at a time"
    until(lambda: served.server.engine.decoders.used == 0)


def test_bodies_wait_for_room_and_all_are_answered(serve: Serve) -> None:
    served = serve(body_bytes=1 << 20)
    content = encoded(Image.effect_noise((800, 800), 90), "PNG")
    middleware = served.server.asgi
    with highest(lambda: middleware.bodies.total) as seen, ThreadPoolExecutor(12) as threads:
        body = chat("what", data_url(content), max_tokens=1)
        codes = list(threads.map(lambda _: served.post("/v1/chat/completions", body).status_code, range(12)))
    assert set(codes) == {200}
    until(lambda: middleware.bodies.total == 0)
    assert (1 << 19) < max(seen) <= (1 << 20) + len(data_url(content)) + 1000


def test_bodies_without_room_are_told_to_come_again(serve: Serve) -> None:
    served = serve(body_bytes=1 << 16, upload_seconds=1.0)
    head = SLOW.replace(b"900", b"200000")
    with sockets(served, 1, head), sockets(served, 1, head + b" " * 65000) as first, sockets(served, 1, head + b" " * 65000) as second:
        answers = sorted(line.recv(4096).split(b"\r\n")[0].split(b" ")[1] for line in (*first, *second))
    assert answers[-1] == b"429", answers


def test_a_chat_whose_reader_stalls_is_cancelled(serve: Serve, slow_words: Callable[[float], None]) -> None:
    slow_words(0.02)
    served = serve(stall=0.5, max_n=1000)  # a minute of work and more, in lines that fill every buffer
    body = json.dumps(chat("what", stream=True, n=1000, logprobs=True, top_logprobs=5)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with sockets(served, 2, head % len(body) + body, room=4096):
        until(lambda: served.server.engine.inflight == 2)
        until(lambda: not served.process.server_state.connections)
        until(lambda: not idle_failures(served))
    assert served.post("/v1/chat/completions", chat("what", max_tokens=1)).status_code == 200


def test_a_listener_that_stalls_is_dropped(serve: Serve) -> None:
    served = serve(stall=0.5)
    with sockets(served, 3, b"GET /api/v1/memory/events?leases=true HTTP/1.1\r\nHost: localhost\r\n\r\n", room=4096):
        until(lambda: served.server.broadcast.listeners == 3)
        deadline = time.monotonic() + 15
        while served.server.broadcast.listeners and time.monotonic() < deadline:
            for key in [m.key for m in served.pool.status()] * 20:
                with served.pool.lease(key):
                    pass
            time.sleep(0.01)
        assert served.server.broadcast.listeners == 0


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "TGA", "WEBP"])
def test_formats_of_the_command_line_are_accepted(serve_once: Serve, form: str) -> None:
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    content = encoded(Image.new("RGB", (40, 30), "red"), form)
    assert serve_once().post("/api/v1/classify", files={"images": ("a", content)}).status_code == 200


def test_a_very_long_picture_is_answered(serve_once: Serve) -> None:
    served, content = serve_once(), png(3000, 10)
    assert served.post("/api/v1/classify", files={"images": ("a.png", content)}).status_code == 200
    assert served.post("/v1/chat/completions", chat("what", data_url(content), max_tokens=2)).status_code == 200


def test_a_worker_that_is_ended_answers_nothing() -> None:
    worker = Worker(25_000_000)
    assert worker.ask(png(), 5.0)[0]["size"] == [32, 32]
    worker.kill()
    with pytest.raises((EOFError, OSError, psutil.NoSuchProcess)):
        worker.ask(png(), 5.0)
    worker.end()


# --- what is held ----------------------------------------------------------------------------------------------------------------


class Watching(FakeRecognizer):
    """Remembers the pictures it saw without holding them; fails when `failing`."""

    def __init__(self, *, failing: bool = False) -> None:
        super().__init__()
        self.failing, self.pictures = failing, []

    def batch(self, images: Sequence[Sample]) -> list[Prediction]:
        self.pictures += [weakref.ref(sample.image.image) for sample in images]  # type: ignore[union-attr]
        if self.failing:
            raise KnowledgeError("no")
        return super().batch(images)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("failing", [False, True])
def test_pictures_go_with_their_request_and_wait_for_no_garbage_collection(serve: Serve, failing: bool) -> None:
    recognizer = Watching(failing=failing)
    served = serve(recognizer=lambda: recognizer)
    with no_garbage_collection():
        for _ in range(3):
            answer = served.post("/api/v1/classify", files=[("images", (f"{i}.png", png(200, 200))) for i in range(3)])
            assert answer.status_code == (503 if failing else 200)
        until(lambda: all(picture() is None for picture in recognizer.pictures) and served.server.engine.decoders.used == 0)
        assert len(recognizer.pictures) == 9


def test_pictures_of_refused_late_and_left_requests_go_as_well(serve: Serve, slow_words: Callable[[float], None]) -> None:
    slow_words(0.6)
    served = serve(deadline=1.2)
    url = data_url(png(200, 200))
    broken = data_url(png()[:60])
    with no_garbage_collection():
        assert served.post("/v1/chat/completions", chat("what", url, broken)).status_code == 400
        assert served.post("/v1/chat/completions", chat("what", url, max_tokens=500)).status_code == 504
        assert served.post("/v1/chat/completions", chat("what", url, max_tokens=500, stream=True)).status_code in (200, 504)
        assert served.post("/v1/embeddings", {"input": [url], "dimensions": 3}).status_code in (400, 504)
        with pytest.raises(httpx.TimeoutException), served.web() as web:
            web.post("/v1/chat/completions", json=chat("what", url, max_tokens=500), timeout=0.2)
        until(lambda: served.server.engine.decoders.used == 0)


def test_what_a_batch_still_computes_counts_although_its_request_has_ended(serve: Serve) -> None:
    gate = threading.Event()

    class Stuck(FakeRecognizer):
        def batch(self, images: Sequence[Sample]) -> list[Prediction]:
            gate.wait(20)
            return super().batch(images)

    served = serve(recognizer=Stuck(), deadline=0.3)
    assert served.post("/api/v1/classify", files={"images": ("a.png", png(100, 100))}).status_code == 504
    assert served.server.engine.decoders.used == 4 * 100 * 100
    gate.set()
    until(lambda: served.server.engine.decoders.used == 0)
