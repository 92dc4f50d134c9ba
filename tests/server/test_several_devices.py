"""A server over several devices: batches on all of them at a time, each told apart, and one that fails does not stop it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders.fake import FakeLoader
from fgvr.types import ModelSpec

from .conftest import MIB, SPECS, Serve


class Slow(FakeLoader):
    """Texts take their time; on devices in `failing` they fail."""

    def __init__(self) -> None:
        super().__init__(work=MIB)
        self.failing: list[str] = []
        self.used: list[str] = []

    def load(self, spec: ModelSpec, device: Device) -> Any:
        model = super().load(spec, device)
        if spec.role == "encoder":
            compute = model.encode_text

            def encode_text(texts: Sequence[str]) -> Any:
                self.used.append(device.name)
                time.sleep(0.05)
                if device.name in self.failing:
                    raise RuntimeError("CUDA error: unspecified launch failure")
                return compute(texts)

            model.encode_text = encode_text
        return model


def test_requests_are_computed_on_all_devices_and_go_on_when_one_fails(serve: Serve) -> None:
    loader = Slow()
    served = serve(loader=loader, devices=2, batch_wait=0.0)

    def ask(text: str) -> int:
        return served.post("/v1/embeddings", {"model": "encoder", "input": text}).status_code

    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(ask, map(str, range(24)))) == {200}
        assert set(loader.used) == {"simulated:0", "simulated:1"}
        loader.failing = ["simulated:0"]
        assert set(clients.map(ask, map(str, range(24)))) == {200}
    failed = loader.used.count("simulated:0")
    assert ask("more") == 200 and loader.used.count("simulated:0") == failed
    rows = served.get("/api/v1/memory/models").json()["data"]
    assert [row["device"] for row in rows if row["role"] == "encoder"] == ["simulated:0", "simulated:1"]
    stats = served.get("/api/v1/memory/stats").json()["data"]
    assert [one["models"] for one in stats["devices"]] == [[SPECS["encoder"].key]] * 2
    assert stats["memory_limit"] == 200 * MIB and stats["total_models"] == 1
    assert 'fgvr_device_memory_used_bytes{device="simulated:1"}' in served.get("/metrics").text
    assert served.change("/api/v1/memory/cleanup").json()["data"]["released_bytes"] == 60 * MIB
    assert served.change("/api/v1/models/joint/load").status_code == 200
    assert all(member.is_here("joint") for member in served.pool.members)
    assert served.change("/api/v1/memory/limit?limit_gb=0.05").json()["data"]["memory_limit"] == 2 * round(0.05 * 2**30)
