"""Getting a model: open_clip's own way against ours (tensors of the file assigned to a skeleton), and a second handle of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fgvr
from benchmarks.race import Races, Way, race
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.clip import CONFIG, WEIGHTS
from fgvr.runtime.pool import ModelPool
from fgvr.session import Session
from fgvr.types import ModelSpec


def measure(*, models: str, repeat: int, size: int = 0) -> Races:
    """`size` plays no part. Restoring an evicted model: python -m benchmarks runtime."""
    cfg = fgvr.load_config(f"models={models}")
    encoder, mllm = Session(cfg).specs["encoder"], Session(cfg).specs["mllm"]
    device = CpuDevice()
    pool = ModelPool(device, budget=device.total)
    ways = [
        Way("encoder: open_clip creates, reads, copies", lambda: _theirs(files.require(encoder, (CONFIG, WEIGHTS)))),
        Way("encoder: ours", lambda: _ours(pool, encoder, device)),
        Way("mllm: from_pretrained, as ours does", lambda: _ours(pool, mllm, device), same_work=False),
    ]
    laps = race(ways, items=1, repeat=repeat)
    for spec in (encoder, mllm):
        pool.register(spec)
    with pool.lease("mllm") as first, pool.lease("mllm") as second:
        pointers = [next(face.model._module.parameters()).data_ptr() for face in (first, second)]
    loads = dict(pool.loads)
    pool.close()
    shared = pointers[0] == pointers[1]
    return Races({"load": laps}, [f"two leases at once: one copy {shared}, loads {loads}"], {"shared": shared, "loads": loads})


def _ours(pool: ModelPool, spec: ModelSpec, device: CpuDevice) -> dict[str, float]:
    model = pool.loader(spec).load(spec, device)
    return {"bytes": model.nbytes}


def _theirs(folder: Path) -> dict[str, float]:
    import open_clip

    module: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=True)
    return {"bytes": sum(p.nbytes for p in module.parameters())}
