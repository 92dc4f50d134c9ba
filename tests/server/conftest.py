"""A real server on a real port in a thread, over fakes on a simulated device."""

from __future__ import annotations

import base64
import functools
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fgvr.evaluation.records import to_row
from fgvr.runtime.devices import pick_devices
from fgvr.runtime.loaders.fake import FakeLoader, FakeMLLM
from fgvr.runtime.pool import ModelPool
from fgvr.runtime.pool_group import PoolGroup
from fgvr.server.app import Server, make_app
from fgvr.server.knowledge import Knowledge
from fgvr.server.running import Process, config_of
from fgvr.server.settings import Settings, Tokens
from fgvr.types import Candidate, Decision, FastResult, History, ModelSpec, Prediction, Sample

MIB = 1 << 20
SPECS = {
    "mllm": ModelSpec("mllm", "fake", "mllm 40MiB"),
    "encoder": ModelSpec("encoder", "fake", "encoder 30MiB"),
    "joint": ModelSpec("joint", "fake", "joint 20MiB"),
}
ADMIN = {"Authorization": "Bearer secret-admin"}


@dataclass
class FakeRecognizer:
    """Says crow, whatever it sees; remembers how many it saw at once."""

    batch_size: int = 8
    seen: list[int] = field(default_factory=list)

    def batch(self, images: Sequence[Sample]) -> list[Prediction]:
        self.seen.append(len(images))
        fast = FastResult("0" * 64, (Candidate("1", 0.9, 0.5, 0.5),), 0.9, 0.9, 0.1, True, History(3, 2, 9))
        return [
            Prediction(s.key, "0" * 64, None, "1", "crow", 0.9, "fast", fast, Decision(False, 0.9, 0.5), names={"1": "crow"})
            for s in images
        ]


@dataclass
class Served:
    """`web` asks without a token, `admin` with the admin's."""

    url: str
    pool: ModelPool
    server: Server
    recognizer: FakeRecognizer
    process: Process
    thread: threading.Thread

    def web(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=90, trust_env=False, verify=False, **options)  # no certificates are read: 20 ms

    def get(self, path: str, **options: Any) -> httpx.Response:
        with self.web() as web:
            return web.get(path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        with self.web() as web:
            return web.post(path, json=json, **options)

    def change(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return self.post(path, json, headers=ADMIN, **options)

    def stop(self) -> None:
        self.process.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


Serve = Callable[..., Served]


@contextmanager
def servers() -> Iterator[Serve]:
    made: list[Served] = []

    def start(
        *,
        budget: int = 100 * MIB,
        loader: FakeLoader | None = None,
        reader: str | None = None,
        recognizer: Any = None,
        bundle: dict[str, Any] | None = None,
        roles: Sequence[str] = tuple(SPECS),
        devices: int = 1,
        **settings: Any,
    ) -> Served:
        loader = loader or FakeLoader(work=MIB)
        pools = [
            ModelPool(device, budget=budget, loaders=lambda spec: loader, lease_timeout=60.0)
            for device in pick_devices(["simulated:1000MiB"] * devices)
        ]
        pool = pools[0] if devices == 1 else PoolGroup(pools)
        specs = {role: SPECS[role] for role in roles}
        for spec in specs.values():
            pool.register(spec)
        recognizer = recognizer or FakeRecognizer()
        build = recognizer if callable(recognizer) else lambda: recognizer

        def open_knowledge() -> Knowledge:
            made = build()
            return made if isinstance(made, Knowledge) else Knowledge(made, ({"id": "1", "name": "crow", "photographs": 3},), "0" * 64)

        chosen = Settings(port=0, **settings)
        server = make_app(pool, specs, chosen, Tokens("secret-admin", reader), open_knowledge=open_knowledge, to_row=to_row, bundle=bundle)
        config = config_of(server, chosen)
        config.port = 0
        process = Process(config, server)
        thread = threading.Thread(target=process.run, daemon=True)
        thread.start()
        until(lambda: process.started)
        port = process.servers[0].sockets[0].getsockname()[1]
        served = Served(f"http://127.0.0.1:{port}", pool, server, recognizer, process, thread)
        made.append(served)
        return served

    yield start
    for served in made:
        until(lambda served=served: not idle_failures(served))
        served.stop()
        served.pool.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(max_inflight=..., loader=..., budget=...)`: a server; at the end no lease, no place and no job may be left."""
    with servers() as start:
        yield start


@pytest.fixture(scope="module")
def serve_once() -> Iterator[Serve]:
    """The same for tests that leave a server as it was: those of a file that ask for the same settings share one."""
    with servers() as start:
        yield functools.cache(start)


def idle_failures(served: Served) -> list[str]:
    """What is still held although nobody asks for anything."""
    engine = served.server.engine
    found = [f"{m.key} has {m.leases} leases" for m in served.pool.status() if m.leases]
    found += [f"{name} has {queue.queued} jobs" for name, queue in engine.queues.items() if queue.queued or queue.running[0]]
    return found + ([f"{engine.inflight} places taken"] if engine.inflight else [])


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits for what comes to pass after an answer, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.005)


def png(width: int = 32, height: int = 32, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes | None = None) -> str:
    return "data:image/png;base64," + base64.b64encode(content if content is not None else png()).decode()


def chat(text: str = "Describe the bird.", *images: str, **more: Any) -> dict[str, Any]:
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    content: Any = [*shown, {"type": "text", "text": text}] if images else text
    return {"model": "mllm", "messages": [{"role": "user", "content": content}], **more}


@pytest.fixture
def slow_words() -> Iterator[Callable[[float], None]]:
    """Makes each step of a fake answer take time."""
    before = FakeMLLM.seconds

    def slow(seconds: float) -> None:
        FakeMLLM.seconds = seconds

    yield slow
    FakeMLLM.seconds = before
