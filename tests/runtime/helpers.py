"""What the tests of the pool share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec, ModelStatus

PICTURE = Image.new("RGB", (8, 8), "red")
EQUALLY_BIG = ModelSpec("mllm", "fake", "other 40MiB")


class Gate:
    """A load that waits until told; `only` this role."""

    def __init__(self, only: str = "") -> None:
        self.entered, self.open, self.only = threading.Event(), threading.Event(), only

    def __call__(self, spec: ModelSpec) -> None:
        if self.only in ("", spec.role):
            self.entered.set()
            assert self.open.wait(10)


def status(pool: ModelPool, spec: ModelSpec) -> ModelStatus:
    return next(m for m in pool.status() if m.key == spec.key)


def state(pool: ModelPool, spec: ModelSpec) -> str:
    return status(pool, spec).state


def used(pool: ModelPool) -> int:
    return pool.status().used


class Inside:
    """The parts of a pool that tests of its own rules look into; nobody else does."""

    def __init__(self, pool: ModelPool) -> None:
        self.ledger, self.admission, self.condition = pool._ledger, pool._admission, pool._condition
        self.lifecycle, self.housekeeping, self.slots = pool._lifecycle, pool._housekeeping, pool._slots
        self.give_back = pool._give_back

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self.admission.queued

    @property
    def waiting_for_slots(self) -> int:
        return len(self.slots._waiting)


def module_of(model: Any) -> Any:
    """The torch (or mlx) module of a loaded model, to be compared and measured."""
    return model._module


def until(holds: Callable[[], object], seconds: float = 10.0) -> bool:
    """Waits for what another thread does; whether it came."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
