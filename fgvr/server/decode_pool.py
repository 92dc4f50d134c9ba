"""Pictures unpacked in processes that can be ended, each within a budget of bytes and a limit of time."""

import json
import multiprocessing
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

import psutil
from PIL import Image

from fgvr.errors import ImageError
from fgvr.server import decode_worker
from fgvr.server.http_errors import HttpError, stopping
from fgvr.server.settings import Settings
from fgvr.types import Picture
from fgvr.utils.images import REDUCE_ABOVE

BYTES_PER_PIXEL = {"RGB": 8, "L": 8, "1": 8, "CMYK": 8, "YCbCr": 8, "P": 12}
"""Bytes of a process that decodes one, measured for JPEG, PNG and TIFF; of other modes (transparency, 16 bits) `_OTHERS`."""
_OTHERS = 20
_KEPT = 4
"""Pillow keeps four bytes for each pixel of RGB."""
_SENT = 9
"""Of a picture that is kept: the bytes that come through the pipe, once there and twice here."""
WORKERS = 2
_START_SECONDS = 60.0
_PATIENCE = 20.0
_SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """One process. It ends by itself when this one does: its pipe closes then."""

    def __init__(self, max_pixels: int) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=decode_worker.main, args=(theirs, max_pixels), name="fgvr-decode", daemon=True)
        self._process.start()
        theirs.close()
        ready = False
        with suppress(EOFError, OSError):  # it has ended
            ready = self._pipe.poll(_START_SECONDS) and self._pipe.recv_bytes() == b"ready"
        if not ready:
            self.end()
            raise HttpError(503, "the process that decodes pictures does not start", code="unavailable", retry=5)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ask(self, data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """What `decode_worker` answers. Raises TimeoutError; EOFError or OSError when it has ended. Then it is of no use any more.

        `seconds`: of computing, so that a busy machine refuses no picture; whoever computes nothing has `_PATIENCE` times as long."""
        process, until = psutil.Process(self._process.pid), time.monotonic() + _PATIENCE * seconds
        limit, left = _computed(process) + seconds, seconds
        self._pipe.send_bytes(data)
        while not self._pipe.poll(max(0.05, left)):
            left = limit - _computed(process)
            if left <= 0 or time.monotonic() > until:
                raise TimeoutError
        return json.loads(self._pipe.recv_bytes()), self._pipe.recv_bytes()

    def kill(self) -> None:
        """From any thread."""
        self._process.kill()

    def end(self) -> None:
        """Only by whoever asks it."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _computed(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


class Decoders:
    """At most `WORKERS` processes, started when there is work.

    `used`: bytes of the pictures that are being decoded, and of all decoded ones that still exist, whoever holds them. Requests wait in
    the order of their first picture; the oldest may take more than `server.decode_bytes` has left, so that it can end, but one picture at
    a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._condition = threading.Condition()
        self._requests: dict[object, int] = {}  # bytes of their pictures, oldest request first
        self._waiting: set[object] = set()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._closed = False
        self._running, self._needed, self.used = 0, 0, 0

    def decode(self, request: object, data: bytes, size: tuple[int, int], mode: str) -> Picture:
        """The pictures of one request come one after the other. Raises ImageError, or HttpError (503) when no place comes in time."""
        budget, pixels = self._settings.decode_bytes, size[0] * size[1]
        least = pixels * min(BYTES_PER_PIXEL.values()) + len(data)
        if least > budget:
            message = f"{pixels:,} pixels need {least:,} bytes to decode, more than server.decode_bytes={budget:,}; shrink it first"
            raise ImageError(message)
        sent = _SENT * (REDUCE_ABOVE // 4 if pixels > REDUCE_ABOVE else pixels)
        need, kept = min(budget, pixels * BYTES_PER_PIXEL.get(mode, _OTHERS) + len(data) + sent), 0
        worker = self._enter(request, need)
        try:
            worker = worker or Worker(self._settings.max_pixels)
            record, content = self._ask(worker, data)
            if "error" in record:
                raise ImageError(record["error"])
            image = Image.frombytes("RGB", tuple(record["size"]), content)
            kept = image.width * image.height * _KEPT
            # Until it is gone: a batch that computes may hold it longer than its request, which can end at a deadline.
            weakref.finalize(image, self._add, -kept).atexit = False
            return Picture(image, record["sha256"], record["content"])
        finally:
            with self._condition:
                self._running -= 1
                self._needed -= need
                if request in self._requests:
                    self._requests[request] += kept
                self._add(kept - need)

    def leave(self, request: object) -> None:
        """It asks for no more pictures."""
        with self._condition:
            self._requests.pop(request, None)
            self._condition.notify_all()

    def close(self) -> None:
        """No process is left; whoever waits is refused."""
        with self._condition:
            self._closed = True
            busy, idle, self._idle = list(self._busy), self._idle, []
            self._condition.notify_all()
        for worker in busy:
            worker.kill()
        for worker in idle:
            worker.end()

    def _add(self, nbytes: int) -> None:
        with self._condition:
            self.used += nbytes
            self._condition.notify_all()

    def _enter(self, request: object, need: int) -> Worker | None:
        """An idle process; None: the caller starts one."""
        with self._condition:
            self._requests.setdefault(request, 0)
            self._waiting.add(request)
            try:
                if not self._condition.wait_for(lambda: self._closed or self._is_next(request, need), self._settings.deadline):
                    raise HttpError(503, "too many pictures are being decoded", code="busy", retry=5)
                if self._closed:
                    raise stopping()
                self._running += 1
                self._needed += need
                self._add(need)
                return self._idle.pop() if self._idle else None
            finally:
                self._waiting.remove(request)
                self._condition.notify_all()

    def _is_next(self, request: object, need: int) -> bool:
        """Whoever came first is the first to be served, and may take more while nothing else is decoded, unless some pictures will go
        without any request's ending."""
        if self._running >= WORKERS or request is not next(one for one in self._requests if one in self._waiting):
            return False
        oldest, orphans = next(iter(self._requests)), self.used - self._needed - sum(self._requests.values())
        return self.used + need <= self._settings.decode_bytes or (request is oldest and orphans <= 0 and not self._running)

    def _ask(self, worker: Worker, data: bytes) -> tuple[dict[str, Any], bytes]:
        with self._condition:
            self._busy.add(worker)
        answered = False
        try:
            found = worker.ask(data, self._settings.decode_seconds)
            answered = True
            return found
        except TimeoutError:
            limit = f"server.decode_seconds={self._settings.decode_seconds:g}"
            raise ImageError(f"not decoded within {limit}; save it anew, without so many passes") from None
        except (EOFError, OSError, psutil.NoSuchProcess):
            raise ImageError("the process that decoded it ended") from None
        finally:
            with self._condition:
                self._busy.discard(worker)
                if keep := answered and not self._closed:
                    self._idle.append(worker)
            if not keep:
                worker.end()
