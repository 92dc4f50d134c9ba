"""Seeded storms of threads with injected faults, and what must hold at every instant of them.

Sequential property tests cannot see a lost wake-up or a ticket taken too late; many seeds of real threads can. Each seed draws its own
pool (policy, host tier, TTL, slots) and its own faults: memory that runs out in a load, a restore or a forward pass,
corrupt files, interrupts, waiters that are told to stop, models evicted and pinned at any time.

    python -m tests.runtime.storm 300            # the whole set; the last line is the verdict
    python -m tests.runtime.storm 40 --first 100 --patience 5
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image

from fgvr.errors import FgvrError, LeaseTimeout, OutOfBudget, RuntimeConflict, WouldDeadlock
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.simulated import Block, SimulatedDevice
from fgvr.runtime.events import Event
from fgvr.runtime.policy import POLICIES
from fgvr.runtime.pool import ModelPool
from fgvr.types import ModelSpec
from tests.runtime.fakes import FakeLoader

from .helpers import Inside

MIB = 1 << 20
SPECS = [ModelSpec(("mllm", "encoder", "joint")[i % 3], "fake", f"m{i} {size}MiB") for i, size in enumerate((40, 30, 20, 25, 10, 35))]
BUDGET, WORK = 90 * MIB, 2 * MIB
THREADS, ROUNDS = 10, 12
PICTURE = Image.new("RGB", (4, 4), "red")


class OutOfMemoryError(RuntimeError):
    """Recognised by its name, as PyTorch's own is; raising it needs no torch."""


@dataclass
class Verdict:
    """What one or more seeds showed; the first five have to stay empty."""

    stalls: int = 0
    over_budget: int = 0
    evicted_while_leased: int = 0
    double_loads: int = 0
    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    leases: int = 0
    faults: int = 0
    samples: int = 0

    @property
    def good(self) -> bool:
        return not (self.stalls or self.over_budget or self.evicted_while_leased or self.double_loads or self.wrong)

    def add(self, other: Verdict) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __str__(self) -> str:
        return (
            f"{self.stalls} stalls, {self.over_budget} over-budget samples of {self.samples}, {self.evicted_while_leased} evicted while "
            f"leased, {self.double_loads} double loads, {len(self.wrong)} otherwise wrong; {self.leases} leases, {self.faults} faults"
        )


class StormDevice(SimulatedDevice):
    """Memory runs out now and then although there is some."""

    def __init__(self, total: int, chance: float, seed: int, verdict: Verdict) -> None:
        super().__init__(total)
        self._chance, self._random, self._verdict = chance, random.Random(seed), verdict

    def allocate(self, nbytes: int) -> Block:
        if self._random.random() < self._chance:
            self._verdict.faults += 1
            raise OutOfMemoryError("injected: out of memory")
        return super().allocate(nbytes)


class StormLoader(FakeLoader):
    """Faults in loads and moves; knows when a second copy of a model is made."""

    def __init__(self, storm: Storm, *, movable: bool) -> None:
        super().__init__(on_load=self.fault, on_move=lambda spec, way: self.fault(spec), work=WORK, movable=movable)
        self._random, self._verdict = random.Random(storm.seed), storm.verdict
        self._loading: Counter[str] = Counter()
        self._copies: dict[str, weakref.ref] = {}
        self._lock = threading.Lock()

    def fault(self, spec: ModelSpec) -> None:
        draw = self._random.random()
        time.sleep(draw / 2000)
        if draw > 0.09:
            return
        self._verdict.faults += 1
        if draw < 0.04:
            raise ValueError("corrupt")
        if draw < 0.07:
            raise OutOfMemoryError("injected: out of memory")
        raise KeyboardInterrupt

    def load(self, spec: ModelSpec, device: Device):
        with self._lock:
            self._loading[spec.key] += 1
            before = self._copies.get(spec.key, lambda: None)()
            self._verdict.double_loads += self._loading[spec.key] > 1 or before is not None
            del before
        try:
            model = super().load(spec, device)
        finally:
            with self._lock:
                self._loading[spec.key] -= 1
        self._copies[spec.key] = weakref.ref(model)
        return model


class Storm:
    """One seed."""

    def __init__(self, seed: int, *, patience: float = 20.0, quiet: bool = False) -> None:
        self.seed, self.patience, self.quiet = seed, patience, quiet
        self.verdict = Verdict()
        draw = random.Random(seed * 7919)
        self.device = StormDevice(BUDGET, 0.02 if draw.random() < 0.5 else 0.0, seed, self.verdict)
        self.loader = StormLoader(self, movable=draw.random() < 0.6)
        self.pool = ModelPool(
            self.device,
            budget=BUDGET,
            lease_timeout=patience,
            policy=draw.choice(list(POLICIES.values())),
            max_models=draw.choice((None, None, None, 2)),
            host_budget=draw.choice((0, 60, 200)) * MIB,
            ttl=draw.choice((None, 0.002, 0.01)),
            min_residency=draw.choice((0.0, 0.0, 0.002)),
            loaders=lambda spec: self.loader,
        )
        for spec in SPECS:
            self.pool.register(spec)
        self.pool.subscribe(self.hear)
        self.ledger = Inside(self.pool).ledger
        self.done = 0
        self.over = threading.Event()

    # --- oracles -----------------------------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        self.verdict.samples += 1
        self.verdict.over_budget += event.used > BUDGET

    def sample(self) -> None:
        """The ledger never explains less than the device holds, at any instant."""
        while not self.over.is_set():
            with Inside(self.pool).condition:
                used, held = self.ledger.used, self.device.allocated()
            self.verdict.samples += 1
            self.verdict.over_budget += used > BUDGET or held > used
            time.sleep(0.0005)

    @contextmanager
    def holding(self, specs: list[ModelSpec]) -> Iterator[None]:
        entries = [self.ledger.entries[spec.key] for spec in specs]
        before = [e.model for e in entries]
        for _ in range(2):
            for entry, model in zip(entries, before, strict=True):
                there = entry.state == "resident" and entry.model is model is not None and model.weights.block is not None
                self.verdict.evicted_while_leased += not there
            if _ == 0:
                yield
        self.verdict.leases += 1

    def settled(self) -> None:
        """Nothing is left of a storm that is over."""
        ledger, wrong = self.ledger, self.verdict.wrong
        Inside(self.pool).lifecycle.recheck_unreturned()
        if ledger.grants or Inside(self.pool).waiting:
            wrong.append("leases or tickets are left")
        for entry in ledger.entries.values():
            if entry.leases or entry.drain_for or entry.mover or entry.state not in ("absent", "resident", "parked", "failed"):
                wrong.append(f"{entry.key} is left {entry.state}, {entry.leases} leases, drains {entry.drain_for}, moved by {entry.mover}")
            if "not released" in entry.alert:
                wrong.append(f"{entry.key}: {entry.alert}")
            movable = getattr(entry.model, "movable", None)
            held = movable.host_nbytes if movable else 0
            if entry.host_charge != held or (entry.state == "parked" and not (movable and movable.parked)):
                wrong.append(f"{entry.key} is {entry.state}, {entry.host_charge} bytes in main memory on the books and {held} in truth")
            del movable
        if self.device.allocated() != ledger.used:
            wrong.append(f"the books say {ledger.used}, the device {self.device.allocated()}")
        if max(ledger.peak, self.device.peak()) > BUDGET:
            self.verdict.over_budget += 1
        if ledger.host_used > ledger.host_limit:
            wrong.append(f"{ledger.host_used} bytes in main memory, {ledger.host_limit} allowed")
        self.pool.close()
        if self.device.allocated() or ledger.host_used:
            wrong.append(f"a closed pool holds {self.device.allocated()} and {ledger.host_used} bytes")

    # --- weather -----------------------------------------------------------------------------------------------------------

    def round(self, rng: random.Random) -> None:
        chosen = rng.sample(SPECS, rng.choice((1, 1, 2)))
        stop = threading.Event() if rng.random() < 0.1 else None
        if stop is not None:
            threading.Timer(rng.random() / 200, stop.set).start()
        with self.pool.lease(*chosen, stop=stop) as faces, self.holding(chosen):
            if rng.random() < 0.3:
                time.sleep(rng.random() / 1000)
            for spec, face in zip(chosen, faces if len(chosen) > 1 else [faces], strict=True):
                self.use(spec, face)
            if rng.random() < 0.25:
                extra = rng.choice(SPECS)
                with self.pool.lease(extra), self.holding([extra]):
                    pass
            if rng.random() < 0.03:
                raise KeyboardInterrupt
        self.meddle(rng)

    def use(self, spec: ModelSpec, face) -> None:
        if spec.role == "encoder":
            right = face.encode([PICTURE] * 3).shape == (3, 64)
        elif spec.role == "mllm":
            right = len(face.generate([PICTURE] * 3, ["look"] * 3)) == 3
        else:
            right = len(face.match([PICTURE] * 3, ["red"] * 3)) == 3
        if not right:
            self.verdict.wrong.append(f"{spec.key} answered something else")

    def meddle(self, rng: random.Random) -> None:
        draw, key = rng.random(), rng.choice(SPECS).key
        if draw < 0.05:
            self.pool.evict(key, park=rng.random() < 0.5)
        elif draw < 0.08:
            self.pool.cleanup()
        elif draw < 0.12:
            self.pool.pin(key)
            time.sleep(rng.random() / 2000)
            self.pool.unpin(key)
        elif draw < 0.15:
            self.pool.set_budget(rng.choice((80, 90)) * MIB)
        for spec in SPECS:
            self.pool.reset(spec.key)

    def worker(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        for _ in range(ROUNDS):
            try:
                self.round(rng)
            except LeaseTimeout as error:
                if "told to stop" not in str(error):
                    self.verdict.stalls += 1
                    self.verdict.wrong.append(str(error))
            except (OutOfBudget, WouldDeadlock, RuntimeConflict, KeyboardInterrupt):
                pass
            except FgvrError as error:
                if "corrupt" not in str(error):
                    self.verdict.wrong.append(repr(error))
            except BaseException as error:
                self.verdict.wrong.append(repr(error))
            self.done += 1

    def run(self) -> Verdict:
        """Starts, watches and judges; a storm in which no round ends for `patience` seconds has stalled."""
        threads = [threading.Thread(target=self.worker, args=(n,), daemon=True) for n in range(THREADS)]
        watcher = threading.Thread(target=self.sample, daemon=True)
        for thread in (watcher, *threads):
            thread.start()
        seen, since = -1, time.monotonic()
        while any(thread.is_alive() for thread in threads):
            if self.done != seen:
                seen, since = self.done, time.monotonic()
            if self.verdict.stalls or time.monotonic() - since > self.patience + 2:
                if not self.quiet:
                    faulthandler.dump_traceback(all_threads=True)
                self.verdict.stalls += 1
                self.over.set()
                return self.verdict
            time.sleep(0.002)
        self.over.set()
        watcher.join()
        self.come_to_rest()
        self.settled()
        return self.verdict

    def come_to_rest(self) -> None:
        """Housekeeping may still be at work; it must come to rest by itself."""
        Inside(self.pool).housekeeping.stop()
        self.verdict.stalls += not Inside(self.pool).housekeeping.join(self.patience)


def storms(seeds: range, *, patience: float = 20.0, stop_at_first: bool = False, quiet: bool = False) -> Verdict:
    """All of them, one after the other."""
    total = Verdict()
    for seed in seeds:
        verdict = Storm(seed, patience=patience, quiet=quiet).run()
        if not verdict.good and not quiet:
            print(f"seed {seed}: {verdict}", *verdict.wrong[:5], sep="\n  ", file=sys.stderr, flush=True)
        verdict.runs = 1
        total.add(verdict)
        if stop_at_first and not total.good:
            break
    return total


@contextmanager
def quick_gc() -> Iterator[None]:
    """A collection costs 0.2 s once torch is imported; not when what is there now is left out of it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument("--stop-at-first", action="store_true")
    parser.add_argument("--quiet", action="store_true", help="no stacks of threads that stall")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    with quick_gc():
        seeds = range(args.first, args.first + args.seeds)
        verdict = storms(seeds, patience=args.patience, stop_at_first=args.stop_at_first, quiet=args.quiet)
    print(f"{verdict.runs} of {args.seeds} seeded runs in {time.monotonic() - began:.0f} s: {verdict}", flush=True)
    os._exit(0 if verdict.good else 1)  # threads of a storm that stalled would keep the process


if __name__ == "__main__":
    main()
