"""Encoding pictures: open, preprocess, image tower. The reference encodes one at a time in float32."""

from __future__ import annotations

from typing import Any

from benchmarks import reference
from benchmarks.bench import Bench, bench
from benchmarks.floors import BF16_PAYS, gemm
from benchmarks.race import Races, Way, race

BATCHES = (8, 32)


def measure(*, models: str, repeat: int, size: int = 32) -> Races:
    """`size`: images. Flops of the share of the floor count the image tower's matrix products only."""
    rate = {"float32": gemm("float32"), "bfloat16": gemm("bfloat16")}
    pays = rate["bfloat16"] >= BF16_PAYS * rate["float32"]
    with bench(models, images=size) as full, bench(models, images=0, encoder_dtype="bfloat16") as half:
        ways = [Way("reference: one by one, float32", lambda: full.counted(lambda: [reference.encode(full, f) for f in full.files]))]
        kinds = [("float32", full), *([("bfloat16", half)] if pays else [])]
        for dtype, one in kinds:
            for batch in BATCHES:
                ways.append(Way(f"ours: batches of {batch}, {dtype}", _batched(full, one, batch), same_work=dtype == "float32"))
        laps = race(ways, items=size, repeat=repeat)
        pictures = [full.open(file) for file in full.files[:8]]
        cosine = float((full.encoder.encode(pictures) * half.encoder.encode(pictures)).sum(1).min())
        apart = float(abs(full.encoder.encode(pictures) - _alone(full, pictures)).max())
        flops = tower_flops(full.encoder._model._module.visual)
    shares = {lap.name: flops / (rate["bfloat16" if "bfloat16" in lap.name else "float32"] * lap.cpu.median / 1000) for lap in laps}
    notes = [
        f"bfloat16 against float32 in matrix products: {rate['bfloat16'] / rate['float32']:.2f} x; "
        f"{'timed' if pays else 'not timed: it does not pay here'}",
        f"share of the matrix-product floor ({flops / 1e9:.2f} GFLOP per image): "
        + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()),
        f"batched against one by one, float32: greatest difference {apart:.1e}; bfloat16 against float32: least cosine {cosine:.5f}",
    ]
    return Races({"encode": laps}, notes, {"flops": flops, "gemm": rate, "share_of_floor": shares, "cosine": cosine, "apart": apart})


def _batched(counter: Bench, one: Bench, batch: int) -> Any:
    def work() -> None:
        for start in range(0, len(counter.files), batch):
            one.encoder.encode([counter.open(file) for file in counter.files[start : start + batch]])

    def run() -> Any:
        before = one.pool.counters.snapshot().encoder_forwards
        counts = dict(counter.counted(work))
        return {"encoder_forwards": one.pool.counters.snapshot().encoder_forwards - before, "image_opens": counts["image_opens"]}

    return run


def _alone(one: Bench, pictures: list[Any]) -> Any:
    import numpy as np

    return np.concatenate([one.encoder.encode([picture]) for picture in pictures])


def tower_flops(visual: Any) -> float:
    """Of one image through a ViT's linear layers: two per weight and token."""
    tokens = visual.positional_embedding.shape[0]
    blocks = sum(p.numel() for p in visual.transformer.parameters() if p.ndim == 2)
    return 2.0 * tokens * (blocks + visual.conv1.weight.numel())
