"""What each tuned trick buys on the path that users take: off and on in turns within one run.

A trick that buys less than a tenth is not worth its code. The ratio is of the least processor seconds, because the machine is noisy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import fgvr
from benchmarks.bench import bench
from benchmarks.measure import ROOT
from benchmarks.race import Lap, Races, Way, race
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.devices.simulated import SimulatedDevice
from fgvr.runtime.pool import ModelPool
from fgvr.session import Session
from fgvr.types import ModelSpec, Picture
from fgvr.utils.batches import longest_first

_QUESTION = "Which bird is this? A. sparrow B. crow. Answer with the letter."
_ANSWERS = ("a brown bird with a white belly and a long tail", "a black bird with grey wings", "a red bird", "B", "a small yellow bird")
_PROCESS = """
import gc, time
from fgvr.runtime.loaders import libraries
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec
rest = {rest}
if rest:
    libraries.freeze_after_imports()
else:
    gc.disable, gc.freeze = (lambda: None), (lambda: None)
for role, loader in (("encoder", "clip"), ("mllm", "transformers")):
    libraries.import_libraries(find_loader(ModelSpec(role, loader, "tiny")))
"""


def measure(*, models: str, repeat: int, size: int = 8) -> Races:
    """`size`: images of a batch. The trick is off in the first way of each race, and on in the second."""
    races = {
        "optimize_layers, encoder (runtime.optimize)": _layers(models, repeat, size, thinks=False),
        "optimize_layers, mllm (runtime.optimize)": _layers(models, repeat, size, thinks=True),
        "bfloat16, encoder (dtype=fastest)": _dtype(models, repeat, size),
        "prompts of one length together": _by_length(models, repeat, size),
        "processors made once, when a model returns": _processors(models, repeat),
        "host tier, when a model returns to a GPU": _host_tier(models, repeat),
        "the collector rests during imports": _processes(repeat, _PROCESS.format(rest=False), _PROCESS.format(rest=True)),
    }
    bought = {name: _ratio(laps) for name, laps in races.items()}
    notes = [f"{name}: {ratio:.2f} x{'' if ratio >= 1.1 else ', less than a tenth'}" for name, ratio in bought.items()]
    return Races(races, ["least processor time of off / on:", *notes], {"bought": bought})


def _ratio(laps: Sequence[Lap]) -> float:
    off, on = (min(lap.cpu.values) for lap in laps)
    return off / on


def _layers(models: str, repeat: int, size: int, *, thinks: bool) -> list[Lap]:
    with ExitStack() as stack:
        off, on = (stack.enter_context(bench(models, images=size, theirs=theirs, thinks=thinks)) for theirs in (True, False))
        ways = [Way(name, _scoring(b) if thinks else _encoding(b)) for name, b in (("off", off), ("on", on))]
        return race(ways, items=size, repeat=repeat)


def _dtype(models: str, repeat: int, size: int) -> list[Lap]:
    with ExitStack() as stack:
        off, on = (stack.enter_context(bench(models, images=size, dtype=dtype, thinks=False)) for dtype in ("float32", "bfloat16"))
        return race([Way("off", _encoding(off)), Way("on", _encoding(on), same_work=False)], items=size, repeat=repeat)


def _encoding(b: Any) -> Callable[[], Any]:
    return lambda: b.counted(lambda: b.encoder.encode([b.open(file) for file in b.files]))


def _scoring(b: Any) -> Callable[[], Any]:
    return lambda: b.counted(lambda: b.mllm.score([b.open(f) for f in b.files], [_QUESTION] * len(b.files), [_ANSWERS] * len(b.files)))


def _by_length(models: str, repeat: int, size: int) -> list[Lap]:
    """Photographs of several sizes, in batches of half of them: in their order, and as the pool sorts them."""
    with bench(models, images=size) as b:
        pictures = [Picture(b.open(f).image.resize((500, 375) if i % 2 else (160, 120)), str(i)) for i, f in enumerate(b.files)]
        prompts = [_QUESTION] * size
        orders = {"off": list(range(size)), "on": longest_first(b.mllm.model.lengths(pictures, prompts, ""))}

        def way(order: list[int]) -> Callable[[], Any]:
            halves = order[: size // 2], order[size // 2 :]
            return lambda: (
                [b.mllm.model.score([pictures[i] for i in half], prompts[: len(half)], [_ANSWERS] * len(half)) for half in halves] and {}
            )

        return race([Way(name, way(order)) for name, order in orders.items()], items=size, repeat=repeat)


def _processors(models: str, repeat: int) -> list[Lap]:
    spec = Session(fgvr.load_config(f"models={models}")).specs["mllm"]
    device = CpuDevice()
    loader: Any = ModelPool(device, budget=device.total).loader(spec)
    folder = loader.fetch(spec)

    def load(anew: bool) -> dict[str, float]:
        if anew:
            loader.open_processor(spec, folder)
        return {"bytes": loader.load(spec, device).nbytes}

    return race([Way("off", lambda: load(True)), Way("on", lambda: load(False))], items=1, repeat=repeat)


def _host_tier(models: str, repeat: int) -> list[Lap]:
    """On a simulated GPU: loaded again, against restored from main memory."""
    spec = replace(Session(fgvr.load_config(f"models={models}")).specs["encoder"], dtype="float32")
    ways = []
    with ExitStack() as stack:
        for name, host in (("off", 0), ("on", 8 << 30)):
            pool = ModelPool(SimulatedDevice(8 << 30), budget=8 << 30, host_budget=host)
            stack.callback(pool.close)
            ways.append(Way(name, _returns(pool, spec)))
        return race(ways, items=1, repeat=repeat)


def _returns(pool: ModelPool, spec: ModelSpec) -> Callable[[], dict[str, float]]:
    key = pool.register(spec)

    def work() -> dict[str, float]:
        with pool.lease(key):
            pass
        pool.evict(key, park=True)
        return {}

    return work


def _processes(repeat: int, *programs: str) -> list[Lap]:
    """Processes of their own, which `race` cannot time from here: seconds of the child."""
    from benchmarks.measure import Series

    spent: dict[int, list[float]] = {i: [] for i in range(len(programs))}
    for _ in range(repeat):
        for i, program in enumerate(programs):
            before = sum(os.times()[2:4])
            subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
            spent[i].append(1000 * (sum(os.times()[2:4]) - before))
    return [
        Lap(name, Series.of(values), Series.of(values), {}, True, True) for name, values in zip(("off", "on"), spent.values(), strict=True)
    ]
