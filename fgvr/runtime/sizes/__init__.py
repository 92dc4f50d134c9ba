"""What a model takes, by parts, computed before anything is loaded. No tensor library: file headers, config.json, arithmetic.

`footprint(spec)` answers for every family; each family's formulas are in the file of its name. They are checked against real loads and
against a trace of every tensor of real calls (tests/runtime/test_sizes.py).
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import complete, files
from fgvr.runtime.loaders.base import find_loader
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec, PlanPart

__all__ = ["ON_DISK", "Footprint", "footprint", "presence", "would_be_half"]

ON_DISK = ("clip", "timm", "qwen", "blip", "mlx")  # loaders that read a folder
_FAMILIES = ("clip", "timm", "qwen", "blip")
_SMALL = ("clip", "timm", "blip")  # families worth float32 where float16 would be emulated


def footprint(spec: ModelSpec, device: str = "cpu") -> Footprint:
    """Bytes of `spec` on `device` (`cpu`, `cuda:0`, ...).

    Raises ModelLoadError when they cannot be known, ConfigError for an unknown loader.
    """
    if spec.loader in _FAMILIES:
        return importlib.import_module(f"fgvr.runtime.sizes.{spec.loader}").footprint(spec, device)
    loader = find_loader(spec)
    weights, work = loader.estimate(spec), loader.work_bytes(spec)
    return Footprint((PlanPart("weights", weights),), (PlanPart(f"batch of {spec.batch_size}", work),))


def presence(spec: ModelSpec) -> str:
    """Of what family a model on disk is, and whether its weights are here; "" for loaders that read no folder. Reads no weights."""
    if spec.loader not in ON_DISK:
        return ""
    repository = importlib.import_module("fgvr.runtime.sizes.clip").repository(spec) if spec.loader == "clip" else None
    folder = files.locate(spec, repository)
    if folder is None:
        return f"{spec.source} is not on this machine: sizes are those of the published model"
    config = folder / "config.json"
    kind = complete.family(files.read_config(config)) if config.is_file() else "an encoder of open_clip"
    if absent := files.absent_shards(folder):
        weights = f"{len(absent)} of its weight files are missing ({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''})"
    else:
        weights = "its weights are here" if any(file.is_file() for file in files.weight_files(folder)) else "its weights are missing"
    return f"{kind}, supported; {weights}"


def would_be_half(spec: ModelSpec) -> bool:
    """Whether it is a small model (no MLLM) that float16 was asked for, or whose large files mean that by `auto`."""
    if spec.loader not in _SMALL or spec.dtype != "auto":
        return spec.loader in _SMALL and spec.dtype == "float16"
    found = importlib.import_module(f"fgvr.runtime.sizes.{spec.loader}").shards(spec)
    stats = [file.stat() for file in found]
    large = sum(stat.st_size for stat in stats) >= files.HASH_WHOLE
    return large and _half(tuple(found), tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=64)
def _half(shards: tuple[Path, ...], _as_of: tuple[tuple[int, int], ...]) -> bool:
    """Every stage of every job asks; read once as long as the files stay what they are."""
    try:
        return files.resolve_dtype("auto", files.read_weights(shards)) == "float16"
    except ModelLoadError:  # damaged: said, with the cure, by whoever loads it or looks after the files
        return False
