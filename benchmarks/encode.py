"""Encoding pictures: open, preprocess, image tower. The reference encodes one at a time in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import reference
from benchmarks.bench import Bench, contenders
from benchmarks.floors import BF16_PAYS, gemm
from benchmarks.race import Races, Way, race

BATCHES = (8, 32)


def measure(*, models: str, repeat: int, size: int = 32) -> Races:
    """`size`: images. Flops of the share of the floor count the image tower's matrix products only."""
    rate = {dtype: gemm(dtype) for dtype in ("float32", "bfloat16")}
    with contenders(models, images=size, half=rate["bfloat16"] >= BF16_PAYS * rate["float32"], thinks=False) as field:
        peer, full, half = field.peer, field.full, field.half
        ways = [Way("reference: one by one, float32", lambda: peer.counted(lambda: [reference.encode(peer, f) for f in peer.files]))]
        ways += [
            Way(f"ours: batches of {batch}, {dtype}", _batched(b, batch), same_work=dtype == "float32")
            for dtype, b in field.ours.items()
            for batch in BATCHES
        ]
        laps = race(ways, items=size, repeat=repeat)
        pictures = [full.open(file) for file in full.files[:8]]
        vectors, alone = full.encoder.encode(pictures), np.concatenate([peer.encoder.encode([picture]) for picture in pictures])
        apart = float(abs(vectors - alone).max())
        cosine = float((vectors * half.encoder.encode(pictures)).sum(1).min()) if half else None
        flops = tower_flops(full.encoder.model._module.visual)
    shares = {lap.name: flops / (rate["bfloat16" if "bfloat16" in lap.name else "float32"] * lap.cpu.median / 1000) for lap in laps}
    notes = [
        f"bfloat16 against float32 in matrix products: {rate['bfloat16'] / rate['float32']:.2f} x"
        + ("" if half else "; not timed: it does not pay here"),
        f"share of the matrix-product floor ({flops / 1e9:.2f} GFLOP per image): "
        + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()),
        f"ours in float32, batched, against the reference: greatest difference {apart:.1e}"
        + (f"; bfloat16 against float32: least cosine {cosine:.5f}" if cosine else ""),
    ]
    return Races({"encode": laps}, notes, {"flops": flops, "gemm": rate, "share_of_floor": shares, "cosine": cosine, "apart": apart})


def _batched(b: Bench, batch: int) -> Any:
    def work() -> None:
        for start in range(0, len(b.files), batch):
            b.encoder.encode([b.open(file) for file in b.files[start : start + batch]])

    return lambda: b.counted(work)


def tower_flops(visual: Any) -> float:
    """Of one image through a ViT's linear layers: two per weight and token."""
    tokens = visual.positional_embedding.shape[0]
    blocks = sum(p.numel() for p in visual.transformer.parameters() if p.ndim == 2)
    return 2.0 * tokens * (blocks + visual.conv1.weight.numel())
