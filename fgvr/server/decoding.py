"""Pictures unpacked in processes that can be ended, each within a budget of bytes and a limit of time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fgvr.errors import ImageError
from fgvr.server import decode_worker
from fgvr.server.http_errors import HttpError
from fgvr.types import Picture
from fgvr.utils.images import REDUCE_ABOVE

BYTES_PER_PIXEL = {"RGB": 8, "L": 8, "1": 8, "CMYK": 8, "YCbCr": 8, "P": 12}
"""Bytes of a process that decodes one, measured for JPEG, PNG and TIFF; of other modes (transparency, 16 bits) `_OTHERS`."""
_OTHERS = 20
_KEPT = 4
"""Pillow keeps four bytes for each pixel of RGB."""
_SENT = 6
"""Of a picture that is kept: the bytes that come through the pipe, on either side."""
WORKERS = 2
_START_SECONDS = 60.0


class Worker:
    """One process. It ends by itself when this one does: its standard input closes then."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        more = {"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        words = [sys.executable, "-m", decode_worker.__name__]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | more, start_new_session=True
        )  # a session of its own: Ctrl-C is for the server, which then ends it
        self.late = False
        with self._limit(_START_SECONDS):
            if decode_worker.read(self._out) is None:
                self.end()
                raise HttpError(503, "the process that decodes pictures does not start", code="unavailable", retry=5)

    @property
    def _out(self) -> Any:
        return self._process.stdout

    def ask(self, record: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes] | None:
        """None: it ended, see `late`."""
        with self._limit(seconds):
            try:
                decode_worker.write(self._process.stdin, record, data)  # type: ignore[arg-type]
                return decode_worker.read(self._out)
            except (BrokenPipeError, ValueError):  # ended by the limit, or by `end`
                return None

    @contextmanager
    def _limit(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._too_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _too_late(self) -> None:
        self.late = True
        self._process.kill()

    def kill(self) -> None:
        """From any thread; whoever waits for its answer gets None."""
        self._process.kill()

    def end(self) -> None:
        """Only by whoever asks it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()  # type: ignore[union-attr]
            except BrokenPipeError:  # what was left to write has no reader
                continue


@dataclass(eq=False)
class Hold:
    """The decoded pictures of one request; they count until it ends."""

    used: int = 0


class Decoders:
    """At most `WORKERS` processes, started when there is work.

    What is being decoded and what requests hold stays within a budget of bytes. Requests wait in the order of their first picture; the
    oldest may take more than is left, so that it can end."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holds: dict[Hold, None] = {}
        self._waiting: set[Hold] = set()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._running, self.used, self._closings = 0, 0, 0

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """For one request; its pictures are decoded one after the other."""
        hold = Hold()
        try:
            yield hold
        finally:
            with self._condition:
                self._holds.pop(hold, None)
                self.used -= hold.used
                self._condition.notify_all()

    def decode(
        self, data: bytes, size: tuple[int, int], mode: str, hold: Hold, *, max_pixels: int, budget: int, seconds: float, patience: float
    ) -> Picture:
        """Raises ImageError, or HttpError (503) when no place comes within `patience`."""
        pixels = size[0] * size[1]
        least = pixels * min(BYTES_PER_PIXEL.values()) + len(data)
        if least > budget:
            message = f"{pixels:,} pixels need {least:,} bytes to decode, more than server.decode_bytes={budget:,}; shrink it first"
            raise ImageError(message)
        need = (
            pixels * BYTES_PER_PIXEL.get(mode, _OTHERS)
            + len(data)
            + min(pixels, REDUCE_ABOVE // 4 if pixels > REDUCE_ABOVE else pixels) * _SENT
        )
        with self._place(hold, min(need, budget), budget, patience):
            worker = self._worker()
            kept = False
            try:
                found = worker.ask({"max_pixels": max_pixels}, data, seconds)
                kept = found is not None
            finally:
                self._back(worker, kept)
            if found is None and worker.late:
                raise ImageError(f"not decoded within server.decode_seconds={seconds:g}; save it anew, without so many passes")
            if found is None:
                raise ImageError("the process that decoded it ended")
            record, content = found
            if "error" in record:
                raise ImageError(record["error"])
            image = Image.frombytes("RGB", tuple(record["size"]), content)
            with self._condition:
                if hold in self._holds:  # else its request has ended meanwhile
                    hold.used += (kept_bytes := image.width * image.height * _KEPT)
                    self.used += kept_bytes
            return Picture(image, record["sha256"], record["content"])

    def close(self) -> None:
        """No process is left; whoever waits is refused. The next picture starts anew."""
        with self._condition:
            self._closings += 1
            busy, idle, self._idle = list(self._busy), self._idle, []
            self._condition.notify_all()
        for worker in busy:
            worker.kill()
        for worker in idle:
            worker.end()

    @contextmanager
    def _place(self, hold: Hold, need: int, budget: int, patience: float) -> Iterator[None]:
        until = time.monotonic() + patience
        with self._condition:
            closings = self._closings
            self._holds.setdefault(hold)
            self._waiting.add(hold)
            try:
                while not self._next(hold, need, budget):
                    if self._closings != closings:
                        raise HttpError(503, "the server is stopping", code="draining", retry=5)
                    if (left := until - time.monotonic()) <= 0:
                        raise HttpError(503, "too many pictures are being decoded", code="busy", retry=5)
                    self._condition.wait(left)
                self._running += 1
                self.used += need
            finally:
                self._waiting.remove(hold)
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._running -= 1
                self.used -= need
                self._condition.notify_all()

    def _next(self, hold: Hold, need: int, budget: int) -> bool:
        """In the order of `_holds`: whoever came first is the first to be served."""
        if self._running >= WORKERS or hold is not next(one for one in self._holds if one in self._waiting):
            return False
        return self.used + need <= budget or hold is next(iter(self._holds))

    def _worker(self) -> Worker:
        with self._condition:
            worker = self._idle.pop() if self._idle else None
        worker = worker or Worker()
        with self._condition:
            self._busy.add(worker)
        return worker

    def _back(self, worker: Worker, kept: bool) -> None:
        with self._condition:
            self._busy.discard(worker)
            if kept:
                self._idle.append(worker)
        if not kept:
            worker.end()


DECODERS = Decoders()
"""This process's."""
