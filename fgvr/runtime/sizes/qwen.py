"""Qwen2.5-VL: exact weights from headers or config.json, and the widest moment of a batch as loaders/transformers.py runs it.

The moments are those of any model that reads pictures as tokens; sizes/general.py uses them for other families.

Weights: counted per tensor, so that they equal the index of the real files (7B: 16,584,333,312 bytes); the rotary tables, in no file, are
672 bytes more. Working memory: the largest of

- tower: pixels + rotary tables + the wider of attention (queries and keys turn in float32) and MLP, for all patches of the batch;
- prefill: what the tower left + key-value cache + the widest layer, for all tokens; logits of the last position only;
- score: the prompts' cache + as many copies of one prompt's as the cap allows + repeated heads, or the logits of all those positions.

`s` is bytes per value, `P` patches, `T` tokens, `H I` hidden and MLP width, `w m` the tower's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import families, files, quantized
from fgvr.runtime.loaders.base import SANE_PIXELS
from fgvr.runtime.sizes.footprint import Footprint, count_values, layer_bytes, origin, published, total, value_bytes, widest
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

FAMILY, CLASS = "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"
PROMPT_TOKENS = 512  # beside the image
CONTEXT = 128_000
NEW_TOKENS = 256
CANDIDATES = 5  # of one shortlist, scored together
SCORING_BYTES = 1 << 30  # cap on the copies of the key-value cache, and on the logits, of one scoring pass
LOGIT_BYTES = 1 << 22  # of float32 logits that are summed up at once
PARTS: tuple[str, ...] = ("vision tower", "language layers", "embeddings", "output head")
_HOST = 16  # bytes in memory per byte of tokenizer file, processor included: 110 MiB measured for 7 MB


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes in a config.json that bytes depend on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool
    width: int
    depth: int
    tower_heads: int
    tower_inner: int
    out: int
    patch: int = 14
    temporal: int = 2
    merge: int = 2
    channels: int = 3

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        return self.head * self.kv_heads

    @property
    def patch_values(self) -> int:
        return self.channels * self.temporal * self.patch**2

    def cache_bytes(self, size: int) -> int:
        """Of the key-value cache, per token."""
        return 2 * self.layers * self.kv_width * size

    def counts(self) -> dict[str, int]:
        """Values per part; exact."""
        h, w = self.hidden, self.width
        layer = 2 * h * h + h + 2 * (h * self.kv_width + self.kv_width) + 3 * h * self.inner + 2 * h
        block = 4 * w * w + 4 * w + 3 * w * self.tower_inner + 2 * self.tower_inner + w + 2 * w
        merged = w * self.merge**2
        merger = w + merged * merged + merged + merged * self.out + self.out
        words = self.vocabulary * h
        return {
            "vision tower": self.depth * block + self.patch_values * w + merger,
            "language layers": self.layers * layer + h,
            "embeddings": words,
            "output head": 0 if self.tied else words,
        }

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of one language layer's matrices: what quantisation makes small."""
        h, kv, inner = self.hidden, self.kv_width, self.inner
        return (h, h), (kv, h), (kv, h), (h, h), (inner, h), (inner, h), (h, inner)


# Published configurations, so that plans need neither network nor files.
KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Dimensions(2048, 36, 16, 2, 11008, 151936, True, 1280, 32, 16, 3420, 2048),
    "Qwen/Qwen2.5-VL-7B-Instruct": Dimensions(3584, 28, 28, 4, 18944, 152064, False, 1280, 32, 16, 3420, 3584),
    "Qwen/Qwen2.5-VL-32B-Instruct": Dimensions(5120, 64, 40, 8, 27648, 152064, False, 1280, 32, 16, 3456, 5120),
    "Qwen/Qwen2.5-VL-72B-Instruct": Dimensions(8192, 80, 64, 8, 29568, 152064, False, 1280, 32, 16, 3456, 8192),
}


def read_dimensions(config: dict[str, Any]) -> Dimensions:
    """From a config.json, flat (as published) or nested (as transformers 5 writes it)."""
    text, vision = config.get("text_config") or config, config["vision_config"]
    return Dimensions(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        inner=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        width=vision["hidden_size"],
        depth=vision["depth"],
        tower_heads=vision["num_heads"],
        tower_inner=vision["intermediate_size"],
        out=vision["out_hidden_size"],
        patch=vision["patch_size"],
        temporal=vision["temporal_patch_size"],
        merge=vision["spatial_merge_size"],
        channels=vision.get("in_chans", vision.get("in_channels", 3)),
    )


def footprint(spec: ModelSpec, folder: Path | None, device: type[Device]) -> Footprint:
    """Raises ModelLoadError when the folder is not here and the source is not a published one."""
    shape = find_dimensions(spec, folder)
    shards = files.weight_files(folder) if folder else []
    size = value_bytes(spec, shards, "bfloat16")
    batch = Batch(spec.batch_size, max_pixels(spec, folder), size, unpacked=bool(spec.quantization))
    return Footprint(
        weights=_weights(spec, shape, shards, size),
        work=work(shape, batch),
        facts=tuple(_facts(shape, batch)),
        host=_host(spec, folder, shape, batch, device),
        layers=layer_bytes(shards, size) or ((shape.counts()["language layers"] - shape.hidden) // shape.layers * size,) * shape.layers,
    )


def require_sizes(folder: Path, config: dict[str, Any]) -> None:
    """Raises ModelLoadError when a config.json lacks a size, or has one that cannot be."""
    try:
        sizes = asdict(read_dimensions(config))
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{folder / 'config.json'} does not say {error}, which every {CLASS} has; get it again") from None
    if wrong := [f"{name} {size!r}" for name, size in sizes.items() if name != "tied" and not (type(size) is int and size > 0)]:
        raise ModelLoadError(f"{folder / 'config.json'} has sizes that are no positive whole numbers: {', '.join(wrong)}; get it again")


def find_dimensions(spec: ModelSpec, folder: Path | None) -> Dimensions:
    if folder is not None and (folder / "config.json").is_file():
        return read_dimensions(files.read_config(folder / "config.json"))
    return published(spec, spec.source, KNOWN)


def context(spec: ModelSpec, folder: Path | None) -> int:
    """Tokens of a prompt and its answer that the model was made for; those of the published family where no file says so."""
    config = files.read_config(folder / "config.json") if folder is not None and (folder / "config.json").is_file() else {}
    text = config.get("text_config") or config.get("llm_config") or config
    return int(text.get("max_position_embeddings") or CONTEXT)


def max_pixels(spec: ModelSpec, folder: Path | None) -> int:
    """The cap in force: the spec's, else the file's but never above 1,280 vision tokens (an uncapped photo once asked for 37 GiB)."""
    return families.max_pixels(spec, folder, FAMILY) or SANE_PIXELS


# --- weights -----------------------------------------------------------------------------------------------------------------


def _weights(spec: ModelSpec, shape: Dimensions, shards: list[Path], size: int) -> tuple[PlanPart, ...]:
    def part(tensor: str) -> str:
        if tensor.endswith("lm_head.weight"):
            return "" if shape.tied else "output head"
        return "vision tower" if "visual." in tensor else "embeddings" if "embed_tokens." in tensor else "language layers"

    counts = count_values(shards, PARTS, part) if shards else shape.counts()
    parts = {name: counts[name] * size for name in PARTS if counts[name]}
    if spec.quantization:
        parts["language layers"] = _quantized(spec.quantization, shape, counts["language layers"], size)
    notes = {"vision tower": origin(shards), "language layers": spec.quantization or ""}
    return tuple(PlanPart(name, value, notes.get(name, "")) for name, value in parts.items())


def _quantized(name: str, shape: Dimensions, values: int, size: int) -> int:
    """Matrices of the language layers in fewer bits, with their scales; norms and biases keep `size` bytes per value."""
    kind = quantized.kind_of(name)
    small = sum(kind.matrix_bytes(rows, columns) for rows, columns in shape.matrices)
    rest = values - shape.layers * sum(rows * columns for rows, columns in shape.matrices)
    return shape.layers * small + rest * size


# --- working memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """One call: `count` prompts with one image of `pixels` each, values of `size` bytes."""

    count: int
    pixels: int
    size: int
    prompt: int = PROMPT_TOKENS
    new: int = NEW_TOKENS
    unpacked: bool = False  # quantised: each matrix is made whole again while it is used


def work(shape: Dimensions, batch: Batch) -> tuple[PlanPart, ...]:
    """The widest of the moments. Drawing an answer takes less than scoring, and preparing pictures less than reading prompts as planned."""
    return widest(tower(shape, batch), prefill(shape, batch), score(shape, batch))


def prepare(shape: Dimensions, batch: Batch) -> tuple[PlanPart, ...]:
    """The image processor's copies of the pixels, in main memory: scaled, normalised, cut into patches (2.25 times as measured)."""
    return (PlanPart("pixels, prepared", _patches(shape, batch) * shape.patch_values * 4 * 9 // 4),)


def tower(shape: Dimensions, batch: Batch) -> tuple[PlanPart, ...]:
    """`P (6 s w + (8 if s < 4) w + 16 w)` at the rotation, `P (4 s w + 3 s m)` in the MLP, whichever is more."""
    patches, s, w = _patches(shape, batch), batch.size, shape.width
    turned = w * (5 * s + 16 + (8 if s < 4 else 0))
    mlp = s * (3 * w + 3 * shape.tower_inner)
    return (
        PlanPart("pixels", patches * shape.patch_values * (4 + (s if s < 4 else 0))),
        PlanPart("vision tower", patches * (max(turned, mlp) + 2 * 4 * (w // shape.tower_heads))),
        PlanPart("embedded prompt", batch.count * _tokens(shape, batch) * shape.hidden * s),
    )


def prefill(shape: Dimensions, batch: Batch) -> tuple[PlanPart, ...]:
    """`T (4 H + 3 I) s` in an MLP or `T (8 H) s` in an attention, the mask and its float copy, and what the tower left."""
    tokens, s = _tokens(shape, batch), batch.size
    rows = batch.count * tokens
    inner = max(4 * shape.hidden + 3 * shape.inner, 8 * shape.hidden) + 2 * shape.head
    mask = batch.count * tokens * tokens * (1 + s) if batch.count > 1 else 0
    logits = batch.count * shape.vocabulary * (s + 8)
    return (
        PlanPart("pixels", _patches(shape, batch) * shape.patch_values * 4),
        PlanPart("vision tower's output", _patches(shape, batch) * shape.width * s + 2 * image_tokens(shape, batch) * shape.hidden * s),
        PlanPart("key-value cache", rows * shape.cache_bytes(s)),
        PlanPart("widest layer", rows * inner * s + mask + logits),
        *_unpacked(shape, batch),
    )


def score(shape: Dimensions, batch: Batch) -> tuple[PlanPart, ...]:
    """Candidates of few tokens make many copies of the cache, those of many tokens large logits: the worse of the two."""
    tokens = _tokens(shape, batch)
    kept = (
        PlanPart("pixels", _patches(shape, batch) * shape.patch_values * 4),
        PlanPart("key-value cache", batch.count * tokens * shape.cache_bytes(batch.size)),
        *_unpacked(shape, batch),
    )
    return kept + widest(*(candidates(shape, batch, rows, width) for rows, width in passes(shape, batch)))


def passes(shape: Dimensions, batch: Batch) -> Iterator[tuple[int, int]]:
    """Continuations at once, as many as the cap allows, and the most tokens of which that many fit."""
    cache = _tokens(shape, batch) * shape.cache_bytes(batch.size)
    for rows in range(1, min(batch.count * CANDIDATES, max(1, SCORING_BYTES // cache)) + 1):
        yield rows, max(2, min(batch.new, SCORING_BYTES // (3 * rows * shape.vocabulary * 4)))


def candidates(shape: Dimensions, batch: Batch, rows: int, width: int) -> tuple[PlanPart, ...]:
    """`rows` continuations of `width` tokens each, each behind a copy of its prompt's cache."""
    tokens, s = _tokens(shape, batch), batch.size
    grown = rows * (tokens + width) * shape.cache_bytes(s)
    repeated = rows * (tokens + width) * 2 * shape.hidden * s + rows * width * tokens * s
    values = rows * width * shape.vocabulary
    attention = (PlanPart("copies of the cache", grown + grown // shape.layers), PlanPart("repeated heads", repeated))
    mlp = (PlanPart("copies of the cache", grown), PlanPart("widest layer", rows * width * (4 * shape.hidden + 3 * shape.inner) * s))
    head = (PlanPart("copies of the cache", grown), PlanPart("logits", values * s + 2 * rows * width * shape.hidden * s))
    summed = PlanPart("logits", values * s + 2 * min(values * 4, LOGIT_BYTES))
    return widest(attention, mlp, head, (summed,))


def _unpacked(shape: Dimensions, batch: Batch) -> tuple[PlanPart, ...]:
    largest = max(rows * columns for rows, columns in shape.matrices) * batch.size
    return (PlanPart("one matrix, unpacked", largest),) if batch.unpacked else ()


def _patches(shape: Dimensions, batch: Batch) -> int:
    return batch.count * batch.pixels // shape.patch**2


def image_tokens(shape: Dimensions, batch: Batch) -> int:
    return _patches(shape, batch) // shape.merge**2


def _tokens(shape: Dimensions, batch: Batch) -> int:
    """Of one prompt, its image included."""
    return batch.pixels // (shape.patch * shape.merge) ** 2 + batch.prompt


def _facts(shape: Dimensions, batch: Batch) -> Iterator[str]:
    per_token = shape.cache_bytes(batch.size)
    tokens = _tokens(shape, batch) + batch.new
    image = Batch(1, batch.pixels, batch.size, prompt=0, new=1)
    yield (
        f"key-value cache: {format_bytes(per_token)} per token (2 x {shape.layers} layers x {shape.kv_heads} key-value heads x "
        f"{shape.head} x {batch.size} bytes), {format_bytes(per_token * tokens * batch.count)} for {batch.count} x {tokens} tokens"
    )
    yield (
        f"per image at {batch.pixels:,} pixels ({_patches(shape, image):,} patches, {image_tokens(shape, image):,} tokens): "
        f"{format_bytes(total(tower(shape, image)))} in the vision tower, "
        f"{format_bytes(total(prefill(shape, image)))} in the language model"
    )


# --- main memory -------------------------------------------------------------------------------------------------------------


def _host(spec: ModelSpec, folder: Path | None, shape: Dimensions, batch: Batch, device: type[Device]) -> tuple[PlanPart, ...]:
    tokenizer = folder / "tokenizer.json" if folder else None
    words = tokenizer.stat().st_size if tokenizer and tokenizer.is_file() else 46 * shape.vocabulary  # as the published file has per word
    parts = [PlanPart("tokenizer", _HOST * words)]
    if device.has_own_memory:
        parts.append(PlanPart("image processor", total(prepare(shape, batch)), f"batch of {batch.count}"))
        if not spec.quantization:
            parts.append(PlanPart("weights", sum(shape.counts().values()) * batch.size, "the copy an eviction goes back to"))
    return tuple(parts)
