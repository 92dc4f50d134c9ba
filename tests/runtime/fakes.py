"""The fakes of runtime.loaders.fake with faults on request: hooks inside loads and moves, and weights that leave the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import fake
from fgvr.types import ModelSpec


class FakeLoader(fake.FakeLoader):
    """`on_load(spec)` runs inside each load, `on_move(spec, way)` inside each move (prepare, park, restore) of a `movable` model:
    raise in them to fail it, sleep in them to slow it down."""

    def __init__(
        self,
        *,
        on_load: Callable[[ModelSpec], None] | None = None,
        on_move: Callable[[ModelSpec, str], None] | None = None,
        seconds: float = 0.0,
        work: int = 1 << 20,
        movable: bool = False,
    ) -> None:
        super().__init__(work=work)
        self.kinds = {"encoder": FakeEncoder, "mllm": FakeMLLM, "joint": FakeJoint}
        self._on_load, self._on_move, self._seconds, self._movable = on_load, on_move, seconds, movable

    def load(self, spec: ModelSpec, device: Device) -> Any:
        time.sleep(self._seconds)
        if self._on_load is not None:
            self._on_load(spec)
        hook, model = self._on_move, super().load(spec, device)
        model.weights = FakeWeights(model.nbytes, model.weights, lambda way: hook(spec, way) if hook else None)
        model.movable = model.weights if self._movable else None
        return model


class FakeWeights:
    """Some simulated bytes on a device; they weigh nothing on one that does not simulate. loaders.base.Movable, whole or not at all."""

    def __init__(self, nbytes: int, block: Any, on_move: Callable[[str], None]) -> None:
        self.nbytes = self.host_needed = nbytes
        self.host_nbytes = 0
        self.block, self._on_move = block, on_move

    @property
    def parked(self) -> bool:
        return self.block is None

    def prepare(self) -> int:
        self._on_move("prepare")
        self.host_nbytes = self.nbytes
        return self.nbytes

    def park(self) -> int:
        self._on_move("park")
        self.block = None
        self.host_nbytes = self.nbytes  # and stays: weights are only read, so the next time nothing is copied
        return self.nbytes

    def restore(self, device: Device) -> int:
        self._on_move("restore")
        self.block = device.allocate(self.nbytes)
        return self.nbytes


class _Faulty:
    """`fault`, when set, is raised by the next call."""

    fault: Exception | None = None
    weights: Any

    @contextmanager
    def _working(self) -> Iterator[None]:
        if isinstance(self.weights, FakeWeights) and self.weights.parked:
            raise RuntimeError("computing with weights that are not on the device")
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        with super()._working():  # pyright: ignore[reportAttributeAccessIssue]  (of the fake beside it)
            yield


class FakeEncoder(_Faulty, fake.FakeEncoder): ...


class FakeMLLM(_Faulty, fake.FakeMLLM): ...


class FakeJoint(_Faulty, fake.FakeJoint): ...
