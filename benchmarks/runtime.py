"""What borrowing costs, and what eviction gives back: python -m benchmarks runtime --models random-150m

- A lease of a resident model: microseconds from `with` to its end, nothing computed in it; alone, of two models, and with a listener.
- Evict and restore on a simulated GPU, whose models are parked in main memory: seconds, bytes the pool says came back and bytes the process
  gave up (USS), the first forward pass against a resident one, and whether the answers are the same bits.
  What a restore costs is the difference to the resident forward pass right after it, median over the turns, of the wall and of the
  processor: where others use the machine, too, only the second says something.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

import fgvr
from benchmarks.measure import Series
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.loaders.fake import FakeLoader
from fgvr.runtime.pool import ModelPool
from fgvr.session import Session
from fgvr.types import ModelSpec
from fgvr.utils.text import format_bytes

LEASES = 5000  # per measurement
UNIT = 150e6  # parameters that the target for a restore is given for
_TELLING = 30e6  # parameters; below, what does not depend on size (tokenizer, skeleton) is nearly all
ROLES = ("encoder", "mllm", "joint")
_SERIES = ("load", "again", "resident", "evict", "restore", "first", "work", "work_back", "given_up")


@dataclass(frozen=True, slots=True)
class Turn:
    """One model, evicted and brought back several times. Seconds and bytes."""

    role: str
    parameters: int
    nbytes: int
    load: Series  # the first, with its imports
    again: Series  # after the first eviction
    resident: Series
    evict: Series
    restore: Series  # the lease that brings it back, without the forward pass
    first: Series  # the forward pass after it
    work: Series  # processor seconds of a resident forward pass
    work_back: Series  # and of restore and forward pass
    came_back: int
    given_up: Series  # USS
    same: bool

    @property
    def above(self) -> Series:
        """Seconds of restore and first forward pass above the resident one that came next, per 150 M parameters."""
        turns = zip(self.restore.values, self.first.values, self.resident.values, strict=True)
        return Series.of([(restore + first - resident) / self.parameters * UNIT for restore, first, resident in turns])

    @property
    def work_above(self) -> Series:
        """Likewise of the processor, whoever else uses it."""
        return Series.of(
            [(back - work) / self.parameters * UNIT for back, work in zip(self.work_back.values, self.work.values, strict=True)]
        )


@dataclass(frozen=True, slots=True)
class Report:
    leases: dict[str, Series]
    turns: list[Turn]

    def lines(self) -> list[str]:
        lines = [f"lease of {what:<28} {series:.1f} us" for what, series in self.leases.items()]
        for t in self.turns:
            size = f"{t.parameters / 1e6:.1f} M parameters, {format_bytes(t.nbytes)}"
            back = f"{format_bytes(t.came_back)} by the pool, {format_bytes(t.given_up.median)} by the process"
            lines += [
                f"{t.role}: {size}; answers {'bit-equal' if t.same else 'DIFFER'}; came back: {back}",
                f"  load {t.load.median:.3f} s, again {t.again.median:.3f} s",
                f"  evict {t.evict:.3f} s, restore {t.restore:.3f} s",
                f"  forward resident {t.resident:.3f} s, first after a restore {t.first:.3f} s",
            ]
            if t.parameters > _TELLING:
                wall, work = (Series.of([1000 * value for value in series.values]) for series in (t.above, t.work_above))
                lines.append(f"  restore and first forward above the resident one after it, per 150 M parameters: {wall:.0f} ms")
                lines.append(f"  of the processor: {work:.0f} ms")
        return lines

    def figures(self) -> dict[str, Any]:
        turns = []
        for t in self.turns:
            series = {name: getattr(t, name).summary() for name in _SERIES}
            plain = {name: getattr(t, name) for name in ("role", "parameters", "nbytes", "came_back", "same")}
            turns.append({**plain, **series, "above_per_150m": t.above.summary(), "work_above_per_150m": t.work_above.summary()})
        return {"lease_us": {what: s.summary() for what, s in self.leases.items()}, "turns": turns}


def measure(*, models: str, repeat: int) -> Report:
    """Raises FgvrError when the models are not on this machine."""
    cfg = fgvr.load_config(f"models={models}")
    specs = [Session(cfg).specs[role] for role in ROLES]
    total = CpuDevice().total
    pool = ModelPool(SimulatedDevice(total), budget=total, host_budget=total)
    pictures = [Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))]
    for spec in specs:
        pool.loader(spec).check(spec)  # before minutes are spent on the others
    turns = [_turn(pool, spec, pictures, repeat) for spec in specs]
    pool.close()
    return Report(_leases(repeat), turns)


def _leases(repeat: int) -> dict[str, Series]:
    """On a pool of fakes: what a lease costs does not depend on what is lent."""
    loader = FakeLoader()
    pool = ModelPool(SimulatedDevice(1 << 30), budget=1 << 30, loaders=lambda spec: loader)
    for role in ROLES:
        pool.register(ModelSpec(role, "fake", f"{role} 1MiB"))
    with pool.lease(*ROLES):
        pass
    found = {
        "one resident model": _lease(pool, ("encoder",), repeat),
        "two resident models": _lease(pool, ("encoder", "mllm"), repeat),
    }
    unsubscribe = pool.subscribe(lambda event: None)
    found["one, while somebody listens"] = _lease(pool, ("encoder",), repeat)
    unsubscribe()
    pool.close()
    return found


def _lease(pool: ModelPool, roles: tuple[str, ...], repeat: int) -> Series:
    """The median of each measurement: one lease in thousands meets the scheduler."""
    medians = []
    for _ in range(repeat):
        times = []
        for _ in range(LEASES):
            began = time.perf_counter()
            with pool.lease(*roles):
                pass
            times.append(time.perf_counter() - began)
        medians.append(1e6 * float(np.median(times)))
    return Series.of(medians)


class Use(NamedTuple):
    """Seconds to get a model, of its forward pass, of the processor for both; the answer's bits."""

    getting: float
    forward: float
    work: float
    answer: bytes
    parameters: int


def _turn(pool: ModelPool, spec: ModelSpec, pictures: list[Image.Image], repeat: int) -> Turn:
    role = spec.role
    pool.register(spec)

    def use() -> Use:
        """One lease and one forward pass in it."""
        began, work = time.perf_counter(), time.process_time()
        with pool.lease(role) as model:
            there = time.perf_counter()
            answer = _forward(role, model, pictures)
            done = time.perf_counter()
            return Use(there - began, done - there, time.process_time() - work, answer, _parameters(model))

    load = use()
    pool.evict(role)
    again = use()
    nbytes = next(m.bytes for m in pool.status() if m.key == spec.key)
    back: list[Use] = []
    resident: list[Use] = []
    evict, given_up, came_back = [], [], 0
    process = psutil.Process()
    for _ in range(repeat):
        before = process.memory_full_info().uss
        began = time.perf_counter()
        came_back = pool.evict(role, park=True)
        evict.append(time.perf_counter() - began)
        given_up.append(float(before - process.memory_full_info().uss))
        back.append(use())
        resident.append(use())
    pool.evict(role)
    of = Series.of
    return Turn(
        role,
        load.parameters,
        nbytes,
        load=of([load.getting]),
        again=of([again.getting]),
        resident=of([u.forward for u in resident]),
        evict=of(evict),
        restore=of([u.getting for u in back]),
        first=of([u.forward for u in back]),
        work=of([u.work for u in resident]),
        work_back=of([u.work for u in back]),
        came_back=came_back,
        given_up=of(given_up),
        same=all(u.answer == load.answer for u in (again, *resident, *back)),
    )


def _forward(role: str, model: Any, pictures: list[Image.Image]) -> bytes:
    """The answer's bits."""
    if role == "encoder":
        return model.encode(pictures).tobytes() + model.encode_text(["a red bird"]).tobytes()
    if role == "joint":
        return model.match(pictures, ["a red bird"] * len(pictures)).tobytes()
    scores = model.score(pictures, ["Which bird?"], [["a red bird", "a blue bird"]])
    return np.array(scores[0].log_likelihoods).tobytes()


def _parameters(face: Any) -> int:
    return sum(p.numel() for p in face.model._module.parameters())
