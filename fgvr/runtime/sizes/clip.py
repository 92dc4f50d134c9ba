"""CLIP: exact weights from the header or the architecture, and the widest moment of encoding a batch.

The causal mask, in no file, is 23 KiB more.

Widest is the MLP of a block: for `T` tokens of width `w` and inner width `m`, `T (4 w + 3 m) s` bytes with QuickGELU (`2 m` with GELU):
the block's input, its residual, the norm's output and the sum, and the activations. Pixels stay in float32 beside their copy in the model's
type.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgvr.runtime.loaders import files
from fgvr.runtime.sizes.footprint import Footprint, count_values, origin, published, value_bytes, widest
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUB = "hf-hub:"  # open_clip's and timm's own prefix of a repository
# open_clip's "architecture/tag" names as hub repositories; others are looked up in open_clip itself, when loading.
REPOSITORIES = {
    "ViT-B-32/openai": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B-16/openai": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14/openai": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336/openai": "timm/vit_large_patch14_clip_336.openai",
    "ViT-B-32/laion2b_s34b_b79k": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "ViT-H-14/laion2b_s32b_b79k": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
TEXTS = 64  # through the text tower at once
_UNKNOWN = 48 << 20  # bytes per image, for towers that are no plain transformers


@dataclass(frozen=True, slots=True)
class Shape:
    """A vision transformer and a text transformer."""

    embed: int
    side: int
    patch: int
    width: int
    layers: int
    inner: int
    text_width: int
    text_layers: int
    text_inner: int
    context: int = 77
    vocabulary: int = 49408
    quick: bool = False  # QuickGELU keeps one more activation than GELU

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2 + 1

    def counts(self) -> dict[str, int]:
        w, t = self.width, self.text_width
        vision = 3 * self.patch**2 * w + w + self.tokens * w + 4 * w + self.layers * _block(w, self.inner) + w * self.embed
        text = self.context * t + self.text_layers * _block(t, self.text_inner) + 2 * t + t * self.embed + 1
        return {"image tower": vision, "text tower": text, "word embeddings": self.vocabulary * t}


def _block(width: int, inner: int) -> int:
    return 4 * width * width + 4 * width + 4 * width + 2 * width * inner + inner + width


_BASE = Shape(512, 224, 32, 768, 12, 3072, 512, 12, 2048)
_LARGE = Shape(768, 224, 14, 1024, 24, 4096, 768, 12, 3072)
KNOWN = {
    "ViT-B-32": _BASE,
    "ViT-B-16": replace(_BASE, patch=16),
    "ViT-L-14": _LARGE,
    "ViT-L-14-336": replace(_LARGE, side=336),
    "ViT-H-14": Shape(1024, 224, 14, 1280, 32, 5120, 1024, 24, 4096),
}


def footprint(spec: ModelSpec, folder: Path | None) -> Footprint:
    """Raises ModelLoadError when the folder is not here and the architecture is not one of `KNOWN`."""
    found = files.weight_files(folder, WEIGHTS) if folder else []
    size = value_bytes(spec, found)
    if folder is not None and found and (folder / CONFIG).is_file():
        shape = read_shape(files.read_config(folder / CONFIG)["model_cfg"])
        counts = count_values(found, ("image tower", "text tower", "word embeddings"), _part)
    else:
        architecture, _, tag = spec.source.partition("/")
        shape = replace(published(spec, architecture, KNOWN), quick=tag == "openai")
        counts = shape.counts()
    return Footprint(
        weights=tuple(PlanPart(name, values * size, origin(found) if name == "image tower" else "") for name, values in counts.items()),
        work=work(shape, spec.batch_size, size) if shape else (PlanPart("activations", spec.batch_size * _UNKNOWN),),
        facts=tuple(_facts(shape, size)) if shape else (),
    )


def read_shape(config: dict[str, Any]) -> Shape | None:
    """From open_clip's `model_cfg`; None for towers that are no plain transformers."""
    vision, text = config["vision_cfg"], config.get("text_cfg", {})
    side = vision.get("image_size", 224)
    if not isinstance(vision.get("layers"), int) or not isinstance(vision.get("patch_size"), int) or "hf_model_name" in text:
        return None
    width, text_width = vision.get("width", 768), text.get("width", 512)
    return Shape(
        embed=config["embed_dim"],
        side=side[0] if isinstance(side, list) else side,
        patch=vision["patch_size"],
        width=width,
        layers=vision["layers"],
        inner=int(width * vision.get("mlp_ratio", 4.0)),
        text_width=text_width,
        text_layers=text.get("layers", 12),
        text_inner=int(text_width * text.get("mlp_ratio", 4.0)),
        context=text.get("context_length", 77),
        vocabulary=text.get("vocab_size", 49408),
        quick=config.get("quick_gelu", False),
    )


def work(shape: Shape, batch: int, size: int) -> tuple[PlanPart, ...]:
    """Images of one batch, or `TEXTS` texts, whichever takes more."""
    kept = 3 if shape.quick else 2
    pixels = batch * 3 * shape.side**2
    widest_block = 4 * shape.width + kept * shape.inner
    images = batch * shape.tokens * widest_block * size
    texts = TEXTS * shape.context * (4 * shape.text_width + kept * shape.text_inner) * size
    return widest(
        (PlanPart("pixels", pixels * (4 + (size if size < 4 else 0))), PlanPart(f"{batch} images, widest block", images)),
        (PlanPart("pixels, prepared", pixels * 8),),
        (PlanPart(f"{TEXTS} texts, widest block", texts),),
    )


def _facts(shape: Shape, size: int) -> list[str]:
    alone = shape.tokens * (4 * shape.width + (3 if shape.quick else 2) * shape.inner) * size + 3 * shape.side**2 * 4
    return [f"per image of {shape.side} x {shape.side}: {format_bytes(alone)}"]


def _part(tensor: str) -> str:
    return "image tower" if tensor.startswith("visual.") else "word embeddings" if "token_embedding" in tensor else "text tower"
