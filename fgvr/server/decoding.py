"""Pictures unpacked in processes that can be ended, each within a budget of bytes and a limit of time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from fgvr.errors import ImageError
from fgvr.server import unpacking
from fgvr.server.refusals import Refusal

REDUCE_ABOVE = 8_000_000
"""Pixels. A larger picture is reduced while it is decoded; eight times what a model looks at, which is 1,003,520 pixels at most."""
BYTES_PER_PIXEL = 8
"""Pillow keeps four bytes for each pixel of RGB, and a conversion has two pictures."""
WORKERS = 2
_START_SECONDS = 60.0


class Worker:
    """One process. It ends by itself when this one does: its standard input closes then."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        more = {"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        words = [sys.executable, "-m", unpacking.__name__]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | more, start_new_session=True
        )  # a session of its own: Ctrl-C is for the server, which then ends it
        self.late = False
        with self._limit(_START_SECONDS):
            if unpacking.read(self._out) is None:
                self.end()
                raise Refusal(503, "the process that decodes pictures does not start", code="unavailable", retry=5)

    @property
    def _out(self) -> Any:
        return self._process.stdout

    def ask(self, record: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes] | None:
        """None: it ended, see `late`."""
        with self._limit(seconds):
            try:
                unpacking.write(self._process.stdin, record, data)  # type: ignore[arg-type]
                return unpacking.read(self._out)
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


class Decoders:
    """At most `WORKERS` processes, started when there is work. Pictures wait in order."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._line: deque[object] = deque()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._running, self.used, self._closings = 0, 0, 0

    def decode(self, data: bytes, pixels: int, *, max_pixels: int, budget: int, seconds: float, patience: float) -> tuple[Image.Image, str]:
        """Upright RGB and the sha256 of the bytes. Raises ImageError, or Refusal (503) when no place comes within `patience`."""
        need = pixels * BYTES_PER_PIXEL + len(data)
        if need > budget:
            message = f"{pixels:,} pixels need {need:,} bytes to decode, more than server.decode_bytes={budget:,}; shrink it first"
            raise ImageError(message)
        with self._place(need, budget, patience):
            worker = self._worker()
            kept = False
            try:
                found = worker.ask({"max_pixels": max_pixels, "reduce_above": REDUCE_ABOVE}, data, seconds)
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
            return Image.frombytes("RGB", tuple(record["size"]), content), record["sha256"]

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
    def _place(self, need: int, budget: int, patience: float) -> Iterator[None]:
        me, until = object(), time.monotonic() + patience
        with self._condition:
            closings = self._closings
            self._line.append(me)
            try:
                while self._line[0] is not me or self._running >= WORKERS or self.used + need > budget:
                    if self._closings != closings:
                        raise Refusal(503, "the server is stopping", code="draining", retry=5)
                    if (left := until - time.monotonic()) <= 0:
                        raise Refusal(503, "too many pictures are being decoded", code="busy", retry=5)
                    self._condition.wait(left)
                self._running += 1
                self.used += need
            finally:
                self._line.remove(me)
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._running -= 1
                self.used -= need
                self._condition.notify_all()

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
