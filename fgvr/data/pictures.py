"""From a file, an image or an array to a Picture: decoded, upright, known by its content."""

import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fgvr.errors import ImageError
from fgvr.types import Picture, Sample
from fgvr.utils.images import MAX_PIXELS, ImageSource, StoredImage, content_sha256, read_image, reduced_sha256


def open_picture(source: ImageSource | bytes | Picture, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a path, encoded bytes, a PIL image or an array; see `read_image` for what is accepted. A Picture is one. Raises ImageError."""
    if isinstance(source, Picture):
        return source
    return Picture(*read_image(source, max_pixels=max_pixels))


class DeferredImage(Picture):
    """A file of known content, read and decoded whenever somebody looks, which is seldom; a thousand of them take no memory.

    Looking raises ImageError where the content is another one.
    """

    __slots__ = ("_file",)

    _file: Path | StoredImage

    def __init__(self, file: Path | StoredImage, sha256: str, content: str) -> None:
        for name, value in (("sha256", sha256), ("content", content), ("_file", file)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """By reference: another process reads the file itself."""
        return DeferredImage, (self._file, self.sha256, self.content)

    @property
    def image(self) -> Image.Image:  # pyright: ignore[reportIncompatibleVariableOverride]
        decoded, sha256, _ = read_image(self._file)
        if sha256 != self.sha256:
            raise ImageError(f"{self._file}: has changed since the dataset was listed; run the same command again")
        return decoded


def referred(sample: Sample) -> Picture:
    """A Picture of which only the header has been read, where the sample is a file of known content. Raises ImageError."""
    image = sample.image
    if not (sample.sha256 and isinstance(image, Path | StoredImage)):
        return open_picture(image)
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image.read_bytes())) as header:
            file = image.absolute() if isinstance(image, Path) else image
            return DeferredImage(file, sample.sha256, content_sha256(sample.sha256, header.size))
    except OSError:
        return open_picture(image)  # which knows more formats, and has the words for the others


def deferred_images(remembered: Callable[[Sequence[str]], Collection[str]], samples: Sequence[Sample]) -> list[Picture | None]:
    """Of each sample a Picture that is not opened, or None where it has to be. `remembered`: which of some content hashes need no look,
    because the answers are in a store; with all of them there, a run opens no file."""
    hashes = [(reduced_sha256(s.sha256), s.sha256) if s.sha256 and isinstance(s.image, Path | StoredImage) else () for s in samples]
    known = remembered([content for pair in hashes for content in pair])
    contents = [next((content for content in pair if content in known), None) for pair in hashes]
    return [
        DeferredImage(s.image, s.sha256, content) if content and isinstance(s.image, Path | StoredImage) else None
        for s, content in zip(samples, contents, strict=True)
    ]
