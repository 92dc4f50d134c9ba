"""The planner's forecast against a real run, on this CPU: memory at its peak less memory before the first weight, in a process of its own.

    python scripts/story/forecast.py FOLDER [RUNS]

On a CPU the device is main memory, so what is compared is the plan's sum, batches in turns, with what the plan lists under main memory
(the tokenizer: 107 MiB). Before the base is taken the shipped tiny models have done the same work and are gone: libraries and
whatever they set up at first use are in memory, what is left is weights, tokenizers and working memory. The batch is the one the plan
assumes: pictures at the pixel cap, prompts of `PROMPT_TOKENS`, shortlists whose candidates have the length that costs most, and texts of
so many sentences that 64 pieces go through the text tower at once (eight short texts take 130 MiB less).

The peak is read every 5 ms from /proc/self/statm: pages that no file backs. Weights that stay mapped from their file are added at the end,
for the forecast counts them too; a file that is mapped only while its weights are converted is not. The C allocator has fgvr's own preset
(runtime.allocator), and the plan counts the freed blocks that it may keep.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from fgvr.runtime.allocator import apply

GIB = 1 << 30
TOLERANCE = (-0.05, 0.2)  # a forecast may be too high: weights that no pass has touched are still in the file
STATM = Path("/proc/self/statm")
_PAGE = mmap.PAGESIZE


def measure(folder: Path) -> Iterator[tuple[str, int, str, bool]]:
    """Name, measured peak, what was forecast, whether it is near enough; one row per model and one for both at once."""
    env = dict(os.environ)
    apply("cpu", {}, env)
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(folder)], capture_output=True, text=True, timeout=1800, check=False, env=env
    )
    if done.returncode:
        raise RuntimeError(f"the measuring process failed:\n{done.stderr[-2000:]}")
    for row in json.loads(done.stdout.splitlines()[-1]):
        off = row["forecast"] / row["measured"] - 1
        text = f"forecast {row['forecast'] / 2**20:.0f} MiB, measured {row['measured'] / 2**20:.0f} MiB: {off:+.1%}"
        yield f"forecast, {row['name']}", row["measured"], text, TOLERANCE[0] <= off <= TOLERANCE[1]


class Peak:
    """The most this process had, sampled by a thread."""

    def __init__(self) -> None:
        self.highest = 0
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[Peak]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.highest = max(self.highest, anonymous())


def anonymous() -> int:
    """Bytes of this process that no file backs; without /proc its unshared bytes."""
    if not STATM.exists():
        return psutil.Process().memory_full_info().uss
    with open(STATM) as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * _PAGE


def mapped_weights(folder: Path) -> int:
    """Bytes in memory of the weight files below `folder` that this process still maps."""
    maps = psutil.Process().memory_maps() if STATM.exists() else []
    return sum(found.rss for found in maps if found.path.startswith(str(folder.resolve())))


def main(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from fgvr.runtime.devices import pick_device
    from fgvr.runtime.plan import plan
    from fgvr.runtime.pool import ModelPool
    from fgvr.runtime.sizes import qwen
    from fgvr.runtime.sizes.towers import TEXTS
    from fgvr.types import MemoryPlan, ModelSpec

    encoder = ModelSpec("encoder", "clip", str(folder / "encoder"), batch_size=8)
    mllm = ModelSpec("mllm", "transformers", str(folder / "mllm"), dtype="float32", max_pixels=64 * 784, batch_size=2)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8))  # at the cap exactly
    shape = qwen.read_dimensions(json.loads((folder / "mllm" / "config.json").read_text()))
    batch = qwen.Batch(mllm.batch_size, mllm.max_pixels or 0, 4)
    at_once, width = max(qwen.passes(shape, batch), key=lambda n: sum(p.bytes for p in qwen.candidates(shape, batch, *n)))

    def encode(spec: ModelSpec) -> None:
        with pool.lease(spec) as model:
            model.encode([image] * 8)
            model.encode_text([" ".join(["a photo of a bird " * 10 + "."] * (TEXTS // 8))] * 8)

    def think(spec: ModelSpec) -> None:
        with pool.lease(spec) as model:
            prompts = [" a" * (qwen.PROMPT_TOKENS - 24)] * mllm.batch_size  # short: batches are split by estimates from characters
            texts = [[" bird" * (width - 1)] * max(1, at_once // mllm.batch_size)] * mllm.batch_size
            model.score([image] * mllm.batch_size, prompts, texts)

    def total(planned: MemoryPlan) -> int:
        return planned.in_turns + sum(part.bytes for part in planned.host)

    pool = ModelPool(pick_device("cpu"), budget=8 * GIB)
    encode(replace(encoder, source="tiny"))
    think(replace(mllm, source="tiny", max_pixels=None))
    pool.cleanup()
    gc.collect()
    pool.device.empty_cache()
    base = anonymous()
    rows = []
    steps: list[tuple[str, list[ModelSpec], Callable[[], None]]] = [
        ("random-150m: the encoder", [encoder], lambda: encode(encoder)),
        ("random-150m: encoder and MLLM resident, batches in turns", [encoder, mllm], lambda: think(mllm)),
    ]
    for name, specs, work in steps:
        with Peak().watching() as peak:
            work()
        rows.append({"name": name, "forecast": total(plan(specs, 8 * GIB)), "measured": peak.highest - base + mapped_weights(folder)})
    print(json.dumps(rows))


if __name__ == "__main__":
    if sys.argv[1] == "--one":  # the measuring process itself
        main(Path(sys.argv[2]))
    else:
        for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 1):
            for name, _peak, text, good in measure(Path(sys.argv[1])):
                print(f"{'ok' if good else '!!'}  {name}: {text}", flush=True)
