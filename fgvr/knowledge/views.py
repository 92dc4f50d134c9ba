"""Several views of one support image: its prototype vector is then the re-normalised mean of theirs (opt-in, `knowledge.views`).

Views are made from the decoded picture, the same ones for every image: as it is, mirrored, the middle 85 %, that mirrored.
"""

from __future__ import annotations

from PIL import ImageOps

from fgvr.types import Picture

MOST = 4
_MIDDLE = 0.85  # of each side


def views(picture: Picture, count: int) -> list[Picture]:
    """The first `count` views, each known by a hash of its own so that its vector is remembered apart. The first is the picture itself."""
    image = picture.image
    if count == 1:
        return [picture]
    middle = image.crop(_centre(image.width, image.height))
    made = [image, ImageOps.mirror(image), middle, ImageOps.mirror(middle)][:count]
    return [picture, *(Picture(view, f"{picture.sha256}#view{i}", f"{picture.content}#view{i}") for i, view in enumerate(made[1:], 1))]


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    dx, dy = round(width * (1 - _MIDDLE) / 2), round(height * (1 - _MIDDLE) / 2)
    return dx, dy, width - dx, height - dy
