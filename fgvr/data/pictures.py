"""From a file, an image or an array to a Picture: decoded, upright, known by its content."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fgvr.errors import ImageError
from fgvr.types import Picture, Sample
from fgvr.utils.images import MAX_PIXELS, content_sha256, header_size, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from fgvr.utils.images import ImageSource


def open_picture(source: ImageSource | bytes | Picture, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a path, encoded bytes, a PIL image or an array; see `read_image` for what is accepted. A Picture is one. Raises ImageError."""
    if isinstance(source, Picture):
        return source
    return Picture(*read_image(source, max_pixels=max_pixels))


class LatePicture(Picture):
    """A file of known content, read and decoded whenever somebody looks, which is seldom; a thousand of them take no memory.

    Looking raises ImageError where the content is another one.
    """

    __slots__ = ("_file",)

    _file: Path

    def __init__(self, file: Path, sha256: str, content: str) -> None:
        for name, value in (("sha256", sha256), ("content", content), ("_file", file)):
            object.__setattr__(self, name, value)

    @property
    def image(self) -> Image:  # pyright: ignore[reportIncompatibleVariableOverride]
        decoded, sha256, _ = read_image(self._file)
        if sha256 != self.sha256:
            raise ImageError(f"{self._file}: has changed since the dataset was listed; run the same command again")
        return decoded


def late_pictures(remembered: Callable[[Sequence[str]], Collection[str]], samples: Sequence[Sample]) -> list[Picture | None]:
    """Of each sample a Picture that is not opened, or None where it has to be. `remembered`: which of some content hashes need no look,
    because the answers are in a store; with all of them there, a run opens no file."""
    contents = [_content(sample) for sample in samples]
    known = remembered([content for content in contents if content])
    return [
        LatePicture(s.image, s.sha256, content) if isinstance(s.image, Path) and content in known else None
        for s, content in zip(samples, contents, strict=True)
    ]


def _content(sample: Sample) -> str:
    """Its content hash, "" where only opening it would tell."""
    if not (sample.sha256 and isinstance(sample.image, Path)):
        return ""
    size = header_size(sample.image)
    return content_sha256(sample.sha256, size) if size else ""
