"""Several views of one support image, whose vectors are averaged (`knowledge.views`).

The views are the same for every image: the image, its mirror image, its middle 85 %, and the mirror image of that.
"""

from __future__ import annotations

from typing import Any

from PIL import ImageOps
from PIL.Image import Image

from fgvr.types import Picture

_MIDDLE = 0.85  # of each side


class View(Picture):
    """A view of another picture, made when somebody looks; it travels to other processes as that picture does."""

    __slots__ = ("_number", "_of")

    _of: Picture
    _number: int

    def __init__(self, of: Picture, number: int) -> None:
        mark = f"#view{number}"
        for name, value in (("_of", of), ("_number", number), ("sha256", of.sha256 + mark), ("content", of.content + mark)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self._of, self._number)

    @property
    def image(self) -> Image:  # pyright: ignore[reportIncompatibleVariableOverride]
        whole = self._of.image
        dx, dy = (round(side * (1 - _MIDDLE) / 2) for side in whole.size)
        shown = whole.crop((dx, dy, whole.width - dx, whole.height - dy)) if self._number >= 2 else whole
        return ImageOps.mirror(shown) if self._number % 2 else shown


def views(picture: Picture, count: int) -> list[Picture]:
    """The first `count` views, the image itself first. Each has a hash of its own, so that its vector is cached under its own key."""
    return [picture, *(View(picture, number) for number in range(1, count))]
