"""What this machine can do at best: matrix products in float32 and bfloat16, and reading memory. The other figures are shares of these."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.measure import Series
from benchmarks.race import Races

_SIDE = 1024
BF16_PAYS = 1.5  # times float32, in matrix products; below, bfloat16 saves memory and costs time


def gemm(dtype: str, *, plain: bool = False, seconds: float = 0.5) -> float:
    """Floating-point operations per processor second of square products of 1,024. `plain`: by whatever PyTorch chooses."""
    import torch
    from torch.nn import functional

    from fgvr.runtime.loaders.optimize_layers import onednn_is_ahead, product

    kind = getattr(torch, dtype)
    left, right = (torch.randn(_SIDE, _SIDE).to(kind) for _ in range(2))
    multiply = product if dtype == "float32" and not plain and onednn_is_ahead() else functional.linear
    with torch.inference_mode():
        multiply(left, right, None)
        began, work, count = time.perf_counter(), time.process_time(), 0
        while count == 0 or time.perf_counter() - began < seconds:
            multiply(left, right, None)
            count += 1
        return count * 2.0 * _SIDE**3 / (time.process_time() - work)


def bf16_pays() -> bool:
    return gemm("bfloat16") >= BF16_PAYS * gemm("float32")


def read_rate(size: int = 1 << 28) -> float:
    """Bytes per second of a matrix-vector product over `size` bytes of float32: main memory; the fastest of five, for a floor."""
    import numpy as np

    table, vector = np.ones((size // 2048, 512), np.float32), np.ones(512, np.float32)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        table @ vector
        took.append(time.perf_counter() - began)
    return table.nbytes / min(took)


def measure(*, models: str, repeat: int, size: int = 1024) -> Races:
    """`models` play no part; `size`: MiB of memory to read."""
    found = {
        "gemm_float32_torch": Series.of([gemm("float32", plain=True) / 1e9 for _ in range(repeat)]),
        "gemm_float32": Series.of([gemm("float32") / 1e9 for _ in range(repeat)]),
        "gemm_bfloat16": Series.of([gemm("bfloat16") / 1e9 for _ in range(repeat)]),
        "read": Series.of([read_rate(size << 20) / 1e9 for _ in range(repeat)]),
    }
    ratio = found["gemm_bfloat16"].median / found["gemm_float32"].median
    notes = [
        f"matrix products, GFLOP per processor second: float32 {found['gemm_float32']:.1f} "
        f"(as PyTorch does them by itself: {found['gemm_float32_torch']:.1f}), bfloat16 {found['gemm_bfloat16']:.1f}",
        f"reading memory: {found['read']:.1f} GB/s",
        f"bfloat16 is {ratio:.2f} x float32: {'it pays' if ratio >= BF16_PAYS else 'it does not pay'} on this processor",
    ]
    facts: dict[str, Any] = {name: series.summary() for name, series in found.items()}
    return Races({}, notes, facts | {"bfloat16_pays": ratio >= BF16_PAYS})
