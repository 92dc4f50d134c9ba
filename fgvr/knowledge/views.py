"""Several views of one support image, whose vectors are averaged (`knowledge.views`).

The views are the same for every image: the image, its mirror image, its middle 85 %, and the mirror image of that.
"""

from __future__ import annotations

from PIL import ImageOps

from fgvr.types import Picture

MOST = 4
_MIDDLE = 0.85  # of each side


def views(picture: Picture, count: int) -> list[Picture]:
    """The first `count` views, the image itself first. Each has a hash of its own, so that its vector is cached under its own key."""
    image = picture.image
    if count == 1:
        return [picture]
    middle = image.crop(_centre(image.width, image.height))
    made = [image, ImageOps.mirror(image), middle, ImageOps.mirror(middle)][:count]
    return [picture, *(Picture(view, f"{picture.sha256}#view{i}", f"{picture.content}#view{i}") for i, view in enumerate(made[1:], 1))]


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    dx, dy = round(width * (1 - _MIDDLE) / 2), round(height * (1 - _MIDDLE) / 2)
    return dx, dy, width - dx, height - dy
