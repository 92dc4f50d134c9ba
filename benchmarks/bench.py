"""What the model benchmarks start from: a pool with the bundle's models lent for the whole run, pictures of a fixed seed, counted work."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fgvr
from benchmarks.race import Counts
from fgvr.data.pictures import open_picture
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.pool import ModelPool
from fgvr.session import Session
from fgvr.types import Picture

WIDTH, HEIGHT = 500, 375  # a photo as the field's datasets have them: 234 image tokens
_COUNTED = ("encoder_forwards", "text_forwards", "mllm_calls", "prompt_tokens", "new_tokens")


@dataclass(frozen=True, slots=True)
class Bench:
    """Models on lease, and files to look at."""

    pool: ModelPool
    encoder: Any
    mllm: Any  # None where nobody asks it
    files: list[Path]
    opened: list[int]  # one number: files opened so far

    def open(self, file: Path) -> Picture:
        self.opened[0] += 1
        return open_picture(file)

    def counted(self, work: Callable[[], object]) -> Counts:
        """Do it, and say what it cost."""
        before, opened = self.pool.counters.snapshot(), self.opened[0]
        work()
        done = asdict(self.pool.counters.snapshot() - before)
        return {name: done[name] for name in _COUNTED if done[name]} | {"image_opens": self.opened[0] - opened}


@contextmanager
def bench(models: str, *, images: int, dtype: str = "float32", theirs: bool = False, thinks: bool = True) -> Iterator[Bench]:
    """`theirs`: the modules as their libraries made them, as the reference has them. Raises FgvrError when the models are not here."""
    cfg = fgvr.load_config(f"models={models}")
    specs = {role: replace(Session(cfg).specs[role], dtype=dtype) for role in (("encoder", "mllm") if thinks else ("encoder",))}
    device = CpuDevice()
    device.optimize = not theirs
    pool = ModelPool(device, budget=device.total)
    try:
        for spec in specs.values():
            pool.register(spec)
            pool.loader(spec).check(spec)
        with tempfile.TemporaryDirectory() as folder, pool.lease(*specs) as lent:
            encoder, mllm = lent if thinks else (lent, None)
            yield Bench(pool, encoder, mllm, photos(Path(folder), images), [0])
    finally:
        pool.close()


@dataclass(frozen=True, slots=True)
class Contenders:
    """The same models three times. `half` is None where bfloat16 does not pay: there it is not timed."""

    peer: Bench  # the reference's: float32, as PyTorch and open_clip compute
    full: Bench  # ours in float32
    half: Bench | None  # ours in bfloat16

    @property
    def ours(self) -> dict[str, Bench]:
        return {"float32": self.full} | ({"bfloat16": self.half} if self.half else {})


@contextmanager
def contenders(models: str, *, images: int, half: bool, thinks: bool = True) -> Iterator[Contenders]:
    """`half`: with bfloat16. Each holds its own copy of the models; `thinks`: of the MLLM, too."""
    with ExitStack() as stack:

        def enter(**how: Any) -> Bench:
            return stack.enter_context(bench(models, images=images, thinks=thinks, **how))

        yield Contenders(enter(theirs=True), enter(), enter(dtype="bfloat16") if half else None)


def photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of smooth random colours: they compress as photos do, unlike noise."""
    files = []
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        file = folder / f"{i:05}.jpg"
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, quality=90)
        files.append(file)
    return files
