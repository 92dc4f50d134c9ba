"""Multimodal models of any family: weights from the headers of their files, and an upper estimate of working memory.

The estimate is the widest moment by the formulas of Qwen2.5-VL (sizes/qwen.py) with this model's shapes, and a margin. It holds until a
probe has measured the model (runtime/probe.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import families, files, quantized
from fgvr.runtime.sizes import qwen
from fgvr.runtime.sizes.footprint import Footprint, layer_bytes, layer_index, origin, value_bytes
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

_MARGIN = 1.25


def footprint(spec: ModelSpec, folder: Path | None, config: Mapping[str, Any], device: type[Device]) -> Footprint:
    """Raises ModelLoadError when the weights are not here."""
    shards = files.weight_files(folder) if folder is not None else []
    if folder is None or not shards:
        raise ModelLoadError(f"the size of {spec.source!r} is unknown until its weights are here.\n{files.how_to_get(spec)}")
    size = value_bytes(spec, shards)
    shapes = files.tensor_shapes(shards)
    shape, pixels = _read_dimensions(shapes, config), _pixels(spec, folder, config)
    batch = qwen.Batch(spec.batch_size, pixels, size, unpacked=bool(spec.quantization))
    work = tuple(replace(part, bytes=math.ceil(_MARGIN * part.bytes)) for part in qwen.work(shape, batch))
    weights = _quantized(spec.quantization, shapes, size) if spec.quantization else files.read_weights(shards).bytes_as(spec.dtype)
    facts = (
        "working memory: an upper estimate, as this family has no formulas",
        f"key-value cache: {format_bytes(shape.cache_bytes(size))} per token, at most {qwen.image_tokens(shape, batch):,} tokens per image",
    )
    host = (PlanPart("weights", weights, "the copy an eviction goes back to"),) if device.has_own_memory and not spec.quantization else ()
    return Footprint((PlanPart("weights", weights, origin(shards)),), work, facts, host, layers=layer_bytes(shards, size))


def _pixels(spec: ModelSpec, folder: Path, config: Mapping[str, Any]) -> int:
    """Of one picture, at most. Families with tiles show the whole picture in one more tile than its own pixels fill."""
    settings, kind = families.image_settings(folder), str(config.get("model_type"))
    crop = settings.get("crop_size")
    if kind not in families.PROFILES and isinstance(crop, Mapping) and crop.get("height") and not settings.get("image_grid_pinpoints"):
        return int(crop["height"]) * int(crop["width"])  # every picture becomes this rectangle
    tile = 0 if config.get("mm_tokens_per_image") else _first((config.get("vision_config") or {}).get("image_size"), 0)
    return families.most_pixels(spec, folder, kind) + tile**2


def _read_dimensions(shapes: Mapping[str, list[int]], config: Mapping[str, Any]) -> qwen.Dimensions:
    """What bytes depend on. Heads are taken as one value wide, since only products of width and number count."""
    vision, text = config.get("vision_config") or {}, families.text_config(config)
    words = max((shape for name, shape in shapes.items() if "embed_tokens." in name and len(shape) == 2), default=[1, 1])
    matrices = {name: shape for name, shape in shapes.items() if layer_index(name) is not None and len(shape) > 1}
    patch, side = (_first(vision.get(name), otherwise) for name, otherwise in (("patch_size", 14), ("image_size", 0)))
    ratio = config.get("downsample_ratio")
    merge = vision.get("spatial_merge_size") or config.get("scale_factor") or (1 / ratio if ratio else 1)
    if fixed := config.get("mm_tokens_per_image"):
        merge = side / patch / math.sqrt(fixed)
    width = int(vision.get("embed_dim") or vision.get("hidden_size") or words[1])
    return qwen.Dimensions(
        hidden=words[1],
        layers=max(len(set(map(layer_index, matrices))), int(text.get("num_hidden_layers") or 1)),
        heads=words[1],
        kv_heads=max((shape[0] for name, shape in matrices.items() if "k_proj" in name), default=words[1]),
        inner=max((max(shape) for name, shape in matrices.items() if "self_attn" not in name), default=4 * words[1]),
        vocabulary=words[0],
        tied=True,
        width=width,
        depth=0,
        tower_heads=width,
        tower_inner=int(vision.get("intermediate_size") or 4 * width),
        out=words[1],
        patch=patch,
        merge=max(1, round(merge)),
    )


def _first(value: Any, otherwise: int) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value or otherwise)


def _quantized(name: str, shapes: Mapping[str, list[int]], size: int) -> int:
    """Matrices of language layers in fewer bits; the rest keeps `size` bytes per value."""
    kind = quantized.kind_of(name)

    def taken(tensor: str, shape: list[int]) -> int:
        small = len(shape) == 2 and layer_index(tensor) is not None
        return kind.matrix_bytes(shape[0], shape[1]) if small else math.prod(shape) * size

    return sum(taken(*tensor) for tensor in shapes.items())
