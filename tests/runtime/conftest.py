"""A simulated device, pools of fakes on it, and random models in the shipped formats."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .tiny_random import write_encoder, write_joint, write_mllm

MIB = 1 << 20
MLLM = ModelSpec("mllm", "fake", "mllm 40MiB")
ENCODER = ModelSpec("encoder", "fake", "encoder 30MiB")
JOINT = ModelSpec("joint", "fake", "joint 20MiB")
PoolMaker = Callable[..., ModelPool]


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedDevice(1000 * MIB)


@pytest.fixture
def make_pool(device: SimulatedDevice) -> Iterator[PoolMaker]:
    """`make_pool(budget=..., loader=FakeLoader(...))`, with the three roles registered; nothing may stay leased or in transition."""
    made: list[ModelPool] = []

    def make(*, budget: int = 100 * MIB, loader: FakeLoader | None = None, **settings) -> ModelPool:
        loader = loader or FakeLoader(work=MIB)
        pool = ModelPool(device, budget=budget, loaders=lambda spec: loader, **{"lease_timeout": 10.0} | settings)
        for spec in (MLLM, ENCODER, JOINT):
            pool.register(spec)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        assert all(m.leases == 0 and m.state in ("absent", "resident", "parked", "failed") for m in pool.status())
        pool.close()
    assert device.allocated() == 0


@pytest.fixture
def pool(make_pool: PoolMaker) -> ModelPool:
    """100 MiB: two of the three fit, all three with their working memory also do (90 + 3)."""
    return make_pool()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process started in the background of a shell ignores the interrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def mllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mllm(tmp_path_factory.mktemp("models") / "mllm")


@pytest.fixture(scope="session")
def joint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_joint(tmp_path_factory.mktemp("models") / "joint")


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Three sizes, so that batches are padded."""
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)) for height, width in ((84, 84), (60, 150), (120, 70))
    ]
