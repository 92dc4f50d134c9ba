"""Which models, from values that follow their own rules already. The record itself is `fgvr.types.ModelSpec`."""

from __future__ import annotations

from dataclasses import replace

from fgvr.errors import ConfigError
from fgvr.runtime.devices import ALL, AUTO, device_class, fastest_dtype
from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec

DTYPES = ("auto", "fastest", "float32", "bfloat16", "float16")
QUANTIZATIONS = (None, "int8", "nf4")
_ALSO = {"int4": "nf4"}  # what people write


def checked(spec: ModelSpec, device: str = "auto") -> ModelSpec:
    """The spec, once its values are among the known ones, and its dtype is what this device (a `runtime.device`) computes in: what
    `fastest` means there, and float32 where a small model's float16 would be emulated. So key and fingerprint tell the two apart.

    Raises ConfigError listing all that is wrong.
    """
    if spec.quantization in _ALSO:
        spec = replace(spec, quantization=_ALSO[spec.quantization])
    wrong = []
    if spec.dtype not in DTYPES:
        wrong.append(f"models.{spec.role}.dtype={spec.dtype}: write one of {', '.join(DTYPES)}")
    if spec.quantization not in QUANTIZATIONS:
        wrong.append(f"models.{spec.role}.quantization={spec.quantization}: write null, int8 or nf4 (4 bits)")
    elif spec.quantization and spec.role != "mllm":
        wrong.append(f"models.{spec.role}.quantization={spec.quantization}: only models.mllm can be quantised")
    if wrong:
        raise ConfigError("; ".join(wrong))
    if spec.dtype == "fastest":
        return replace(spec, dtype=fastest_dtype(device))
    loader = find_loader(spec)
    emulated = loader.widens_half and loader.is_half(spec) and device_class(device).emulates_half(chosen_by_auto=device in (AUTO, ALL))
    return replace(spec, dtype="float32") if emulated else spec
