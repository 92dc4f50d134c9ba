"""BLIP image-text matching: exact weights from the header or the architecture, and the widest moment of matching a batch.

The numbers of the positions, in no file, are 8 bytes each more. At worst every pair of a batch has a picture of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.runtime.loaders import files
from fgvr.runtime.sizes.footprint import Footprint, count_values, origin, published, value_bytes
from fgvr.types import ModelSpec, PlanPart

CONFIG = "config.json"
_ACTIVATIONS = 24  # bytes per token and width unit at the widest moment
_SCORES = 8  # bytes per pair of tokens and head: attention before and after its softmax
_TEXT_TOKENS = 64  # of a usual text, for working memory


@dataclass(frozen=True, slots=True)
class Shape:
    """A vision transformer, a text transformer that looks at its tokens, and heads."""

    side: int = 384
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_inner: int = 3072
    context: int = 512
    vocabulary: int = 30524
    shared: int = 256

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2 + 1

    def counts(self) -> dict[str, int]:
        """Values per part; exact."""
        w, t = self.width, self.text_width
        block = 4 * (w * w + w) + 4 * w + 2 * w * self.inner + self.inner + w
        vision = w + self.tokens * w + 3 * self.patch**2 * w + w + self.layers * block + 2 * w
        attention = 4 * (t * t + t) + 2 * t
        looking = 2 * (t * t + t) + 2 * (w * t + t) + 2 * t  # keys and values come from the picture
        layer = attention + looking + 2 * t * self.text_inner + self.text_inner + t + 2 * t
        return {
            "vision tower": vision,
            "text layers": self.context * t + 2 * t + self.text_layers * layer,
            "word embeddings": self.vocabulary * t,
            "heads": (w + t + 2) * self.shared + 2 * t + 2,
        }


_LARGE = Shape(width=1024, layers=24, heads=16, inner=4096)
KNOWN = {
    "Salesforce/blip-itm-base-coco": Shape(),
    "Salesforce/blip-itm-base-flickr": Shape(),
    "Salesforce/blip-itm-large-coco": _LARGE,
    "Salesforce/blip-itm-large-flickr": _LARGE,
}


def footprint(spec: ModelSpec, folder: Path | None) -> Footprint:
    """Raises ModelLoadError when the folder is not here and the source is not a published one."""
    config = folder / CONFIG if folder else None
    shape = read_shape(files.read_config(config)) if config and config.is_file() else published(spec, spec.source, KNOWN)
    found = files.weight_files(folder) if folder else []
    size = value_bytes(spec, found)
    counts = count_values(found, shape.counts(), _part) if found else shape.counts()
    return Footprint(
        weights=tuple(PlanPart(name, values * size, origin(found) if name == "vision tower" else "") for name, values in counts.items()),
        work=work(shape, spec.batch_size),
    )


def read_shape(config: dict[str, Any]) -> Shape:
    """From a config.json; what it does not name has the published base model's size."""
    vision, text, base = config.get("vision_config") or {}, config.get("text_config") or {}, Shape()
    return Shape(
        side=vision.get("image_size", base.side),
        patch=vision.get("patch_size", base.patch),
        width=vision.get("hidden_size", base.width),
        layers=vision.get("num_hidden_layers", base.layers),
        heads=vision.get("num_attention_heads", base.heads),
        inner=vision.get("intermediate_size", base.inner),
        text_width=text.get("hidden_size", base.text_width),
        text_layers=text.get("num_hidden_layers", base.text_layers),
        text_heads=text.get("num_attention_heads", base.text_heads),
        text_inner=text.get("intermediate_size", base.text_inner),
        context=text.get("max_position_embeddings", base.context),
        vocabulary=text.get("vocab_size", base.vocabulary),
        shared=config.get("image_text_hidden_size", base.shared),
    )


def work(shape: Shape, batch: int) -> tuple[PlanPart, ...]:
    looking = 3 * shape.side**2 * 4 + shape.tokens * shape.width * _ACTIVATIONS + shape.heads * shape.tokens**2 * _SCORES
    said = min(_TEXT_TOKENS, shape.context)
    seen = shape.tokens * (shape.width + 2 * shape.text_width) * 4
    reading = seen + said * (shape.text_width * _ACTIVATIONS + shape.text_heads * shape.tokens * _SCORES)
    return (PlanPart(f"{batch} pictures, widest layer", batch * looking), PlanPart(f"{batch} texts beside them", batch * reading))


def _part(tensor: str) -> str:
    if tensor.endswith("position_ids"):
        return ""
    if "word_embeddings" in tensor:
        return "word embeddings"
    return "vision tower" if tensor.startswith("vision_model.") else "text layers" if tensor.startswith("text_encoder.") else "heads"
