"""Multimodal models of any family: weights from the headers of their files, and an upper estimate of working memory.

The estimate adds up what formulas of one family (sizes/qwen.py) know to come one after the other, so it is never too small.
`s` is bytes per value, `P` patches, `T` tokens of a batch, `H I` hidden and MLP width, `w` the tower's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import families, files, quantized
from fgvr.runtime.sizes import qwen
from fgvr.runtime.sizes.footprint import Footprint, layer_bytes, origin, value_bytes
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

_LAYER = re.compile(r"(?:language_model|text_model)\.(?:model\.)?layers\.(\d+)\.(.+)")
_PIXEL = 3 * 4 * 3  # bytes per pixel: three colours in float32, prepared in up to three copies


@dataclass(frozen=True, slots=True)
class Shape:
    """What bytes depend on, from the headers of a model's files."""

    hidden: int
    vocabulary: int
    layers: int
    inner: int
    kv_width: int
    width: int  # of the vision tower


def max_pixels(spec: ModelSpec, folder: Path | None, config: Mapping[str, Any]) -> int | None:
    """The cap on a picture's pixels in force; None: whatever the processor does by itself."""
    profile = families.PROFILES.get(str(config.get("model_type")))
    if spec.max_pixels is not None or profile is None or profile.most is None:
        return spec.max_pixels
    return min(profile.pixels(families.image_settings(folder)), profile.most)


def footprint(spec: ModelSpec, folder: Path | None, config: Mapping[str, Any], device: type[Device]) -> Footprint:
    """Raises ModelLoadError when the weights are not here."""
    shards = files.weight_files(folder) if folder is not None else []
    if folder is None or not shards:
        raise ModelLoadError(f"the size of {spec.source!r} is unknown until its weights are here.\n{files.how_to_get(spec)}")
    size = value_bytes(spec, shards)
    shapes = {name: shape for file in shards for name, shape in files.tensor_shapes(file).items()}
    shape = _read_shape(shapes, config)
    profile = families.PROFILES.get(str(config.get("model_type")))
    pixels = spec.max_pixels or (profile.pixels(families.image_settings(folder)) if profile else qwen.SANE_PIXELS)
    patches, image_tokens = _patches(config, pixels)
    tokens = spec.batch_size * (image_tokens + qwen.PROMPT_TOKENS + qwen.NEW_TOKENS)
    cache = 2 * shape.layers * shape.kv_width * size
    work = (
        PlanPart("pixels", spec.batch_size * pixels * _PIXEL),
        PlanPart("vision tower", spec.batch_size * patches * shape.width * (12 * size + 16)),
        PlanPart("key-value cache", tokens * cache),
        PlanPart("widest layer", tokens * (8 * shape.hidden + 3 * shape.inner) * size),
        PlanPart("scoring", 2 * qwen.SCORING_BYTES if tokens * cache > qwen.SCORING_BYTES else 5 * tokens * cache + _logits(shape, size)),
    )
    weights = files.read_weights(shards).bytes_as(spec.dtype)
    if spec.quantization:
        weights = _quantized(spec.quantization, shapes, size)
    facts = (
        "working memory: an upper estimate, as this family has no formulas",
        f"key-value cache: {format_bytes(cache)} per token, at most {image_tokens:,} tokens per image",
    )
    host = (PlanPart("weights", weights, "the copy an eviction goes back to"),) if device.has_own_memory and not spec.quantization else ()
    return Footprint((PlanPart("weights", weights, origin(shards)),), work, facts, host, layers=layer_bytes(shards, size))


def _logits(shape: Shape, size: int) -> int:
    return qwen.CANDIDATES * 64 * shape.vocabulary * (size + 4)


def _read_shape(shapes: Mapping[str, list[int]], config: Mapping[str, Any]) -> Shape:
    words = max((shape for name, shape in shapes.items() if "embed_tokens." in name and len(shape) == 2), default=[1, 1])
    text, vision = families.text_config(config), config.get("vision_config") or {}
    layers = {found[1] for name in shapes if (found := _layer(name))}
    rows = {found[2]: shape for name, shape in shapes.items() if (found := _layer(name)) and len(shape) > 1}
    inner = max((max(shape) for name, shape in rows.items() if "self_attn" not in name), default=4 * words[1])
    kv = max((shape[0] for name, shape in rows.items() if "k_proj" in name), default=words[1])
    width = max(int(vision.get(name) or 0) for name in ("hidden_size", "embed_dim", "intermediate_size")) or words[1]
    return Shape(words[1], words[0], max(len(layers), int(text.get("num_hidden_layers") or 1)), inner, kv, width)


def _layer(name: str) -> re.Match[str] | None:
    """A tensor of a language layer: its index, its name within. Published folders say `language_model.model.layers` or `model.layers`."""
    return _LAYER.search(name) or re.search(r"^model\.layers\.(\d+)\.(.+)", name)


def _patches(config: Mapping[str, Any], pixels: int) -> tuple[int, int]:
    """Patches and tokens of a picture, at most: one more tile than `pixels` fill shows the whole picture."""
    vision = config.get("vision_config") or {}
    patch, side = (_first(vision.get(name), otherwise) for name, otherwise in (("patch_size", 14), ("image_size", 0)))
    patches = -(-(pixels + side * side) // patch**2)
    if fixed := config.get("mm_tokens_per_image"):
        return patches, int(fixed)
    ratio = config.get("downsample_ratio")
    merge = vision.get("spatial_merge_size") or config.get("scale_factor") or (round(1 / ratio) if ratio else 1)
    return patches, -(-patches // int(merge) ** 2)


def _first(value: Any, otherwise: int) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value or otherwise)


def _quantized(name: str, shapes: Mapping[str, list[int]], size: int) -> int:
    """Matrices of language layers in fewer bits; the rest keeps `size` bytes per value."""
    kind, found = quantized.kind_of(name), 0
    for tensor, shape in shapes.items():
        values = 1
        for side in shape:
            values *= side
        small = _layer(tensor) and len(shape) == 2
        found += kind.matrix_bytes(shape[0], shape[1]) if small else values * size
    return found
