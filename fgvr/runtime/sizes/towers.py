"""Encoders and matchers: weights from file headers, and an upper estimate of working memory until a probe has measured it.

A transformer is widest in the MLP of a block: for `T` tokens of width `w` and inner width `m`, `T (4 w + 3 m)` values. Sizes are read off
the shapes of the tensors, so no family has formulas of its own. A tower that is no plain transformer gets a bound by picture area.
Published models that are not on this machine have their numbers here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import files
from fgvr.runtime.sizes.footprint import Footprint, count_values, origin, published, value_bytes, widest
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

TEXTS = 64  # through a text tower at once
_UNKNOWN = 48 << 20  # bytes per picture of 224 x 224, for towers that are no plain transformers
_SCORES = 8  # bytes per pair of tokens and head, where attention is kept whole: before and after its softmax
_HEAD = 64  # width of an attention head
_WORDS = ("token_embedding", "word_embeddings", "embed_tokens")
_PARTS = ("image tower", "text tower", "word embeddings")


@dataclass(frozen=True, slots=True)
class Tower:
    """A transformer over the tokens of one picture, or of one text."""

    tokens: int
    width: int
    inner: int

    @property
    def values(self) -> int:
        """At its widest moment."""
        return self.tokens * (4 * self.width + 3 * self.inner)

    @property
    def scores(self) -> int:
        """Bytes of attention that is kept whole."""
        return self.width // _HEAD * self.tokens**2 * _SCORES


@dataclass(frozen=True, slots=True)
class Towers:
    """Of a model: values of each part, and what working memory depends on. `image` is None for what is no plain transformer."""

    values: tuple[int, int, int]  # of _PARTS
    side: int  # pixels of a picture
    image: Tower | None
    text: Tower | None = None


_B32 = Towers((87_849_216, 38_131_201, 25_296_896), 224, Tower(50, 768, 3072), Tower(77, 512, 2048))
_L14 = Towers((303_966_208, 85_704_961, 37_945_344), 224, Tower(257, 1024, 4096), Tower(77, 768, 3072))
_BLIP = Towers((86_090_496, 114_211_330, 23_442_432), 384, Tower(577, 768, 3072), Tower(64, 768, 3072))
_BLIP_LARGE = replace(_BLIP, values=(303_690_752, 118_995_458, 23_442_432), image=Tower(577, 1024, 4096))
KNOWN: Mapping[str, Towers] = {
    "ViT-B-32": _B32,
    "ViT-B-16": replace(_B32, values=(86_192_640, 38_131_201, 25_296_896), image=Tower(197, 768, 3072)),
    "ViT-L-14": _L14,
    "ViT-L-14-336": replace(_L14, values=(304_293_888, 85_704_961, 37_945_344), side=336, image=Tower(577, 1024, 4096)),
    "ViT-H-14": Towers((632_076_800, 303_438_849, 50_593_792), 224, Tower(257, 1280, 5120), Tower(77, 1024, 4096)),
    **{f"Salesforce/blip-itm-base-{of}": _BLIP for of in ("coco", "flickr")},
    **{f"Salesforce/blip-itm-large-{of}": _BLIP_LARGE for of in ("coco", "flickr")},
}
"""open_clip's architectures and the published matchers."""


def footprint(
    spec: ModelSpec,
    found: Sequence[Path],
    *,
    name: str = "",
    repository: str | None = None,
    vision: str = "",
    side: int = 224,
    eager: bool = False,
) -> Footprint:
    """Weights and work, by parts.

    Args:
        found: weight files; without any, the published model of this `name` is meant, of this hub repository.
        vision: how names of the image tower's tensors begin; empty: all are.
        side: pixels of a picture.
        eager: a matcher's: attention is kept whole, and each text is read beside its picture.

    Raises:
        ModelLoadError: the files are not here, and the model is not a published one.
    """
    if type(side) is not int or side < 1:
        raise ModelLoadError(f"{spec.source}: the image_size of its configuration is {side!r}, no number of pixels; get the folder again")
    towers = read(found, vision, side) if found else published(spec, name, KNOWN, repository)
    size = value_bytes(spec, found)
    parts = zip(_PARTS, towers.values, strict=True)
    weights = tuple(PlanPart(part, values * size, origin(found) if part == _PARTS[0] else "") for part, values in parts if values)
    if towers.image is None:
        alone = math.ceil(_UNKNOWN * max(1.0, (towers.side / 224) ** 2))
    else:
        alone = towers.image.values * size + (towers.image.scores if eager else 0)
    fact = f"per image of {towers.side} x {towers.side}: {format_bytes(alone + 12 * towers.side**2)}"
    return Footprint(weights, work(towers, spec.batch_size, alone, size, eager=eager), (fact,))


def read(found: Sequence[Path], vision: str, side: int) -> Towers:
    """Off the headers of weight files."""
    counts = count_values(found, _PARTS, lambda tensor: _part(tensor, vision))
    shapes = files.tensor_shapes(found)
    of_image = {name: shape for name, shape in shapes.items() if _part(name, vision) == _PARTS[0]}
    of_text = [shape for name, shape in shapes.items() if _part(name, vision) == _PARTS[1]]
    words = max((shape for name, shape in shapes.items() if _part(name, vision) == _PARTS[2]), default=[0, 0])
    patches = [shape for name, shape in of_image.items() if len(shape) == 4 and "pos" not in name]
    plain = len(patches) == 1 and patches[0][-1] > 1
    image = Tower((side // patches[0][-1]) ** 2 + 1, patches[0][0], _largest(of_image.values())) if plain else None
    context = shapes.get("positional_embedding", [TEXTS])[0]  # of CLIP's text tower
    text = Tower(context, words[1], _largest(of_text)) if of_text and words[1] else None
    return Towers((counts[_PARTS[0]], counts[_PARTS[1]], counts[_PARTS[2]]), side, image, text)


def work(towers: Towers, batch: int, alone: int, size: int, *, eager: bool = False) -> tuple[PlanPart, ...]:
    """Pictures of one batch, or `TEXTS` texts, whichever takes more; a matcher holds both."""
    pixels, text = batch * 3 * towers.side**2, towers.text
    images = (
        PlanPart("pixels", pixels * (4 + (size if size < 4 else 0))),
        PlanPart(f"{batch} images, widest layer", batch * alone),
    )
    if eager and text and towers.image:
        seen = towers.image.tokens * (towers.image.width + 2 * text.width)
        beside = (seen + text.values) * size + text.width // _HEAD * text.tokens * towers.image.tokens * _SCORES
        return (*images, PlanPart(f"{batch} texts beside them", batch * beside))
    texts = (PlanPart(f"{TEXTS} texts, widest layer", TEXTS * text.values * size),) if text else ()
    return widest(images, (PlanPart("pixels, prepared", pixels * 8),), texts)


def _largest(shapes: Iterable[Sequence[int]]) -> int:
    """Inner width: the longest side of a matrix."""
    return max((max(shape) for shape in shapes if len(shape) == 2), default=0)


def _part(tensor: str, vision: str) -> str:
    if tensor.endswith("position_ids"):
        return ""
    if any(word in tensor for word in _WORDS):
        return _PARTS[2]
    return _PARTS[0] if tensor.startswith(vision) else _PARTS[1]
