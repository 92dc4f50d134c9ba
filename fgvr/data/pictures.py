"""From a file, an image or an array to a Picture: decoded, upright, known by its content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgvr.types import Picture
from fgvr.utils.images import MAX_PIXELS, read_image

if TYPE_CHECKING:
    from fgvr.types import ImageSource


def open_picture(source: ImageSource | bytes | Picture, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a path, encoded bytes, a PIL image or an array; see `read_image` for what is accepted. A Picture is one. Raises ImageError."""
    if isinstance(source, Picture):
        return source
    return Picture(*read_image(source, max_pixels=max_pixels))
