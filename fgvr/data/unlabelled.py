"""A folder of images about which nothing is known: by number, in the order of their content, without names.

Paths often say what a picture shows (`013_Bobolink/0001.jpg`), and so does their order. Neither leaves this file by way of
`picture_set`: it hands out decoded pictures, sorted by content hash.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgvr.data.folder import BadImage, Inspector, describe_bad_images
from fgvr.data.pictures import open_picture
from fgvr.errors import DatasetError
from fgvr.types import Picture, Sample
from fgvr.utils.files import short_hash
from fgvr.utils.images import list_images, passed_over
from fgvr.utils.paths import user_path


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Images of a folder, each content once. The samples are for whoever writes results down; models see the `picture_set`."""

    root: Path
    samples: tuple[Sample, ...]  # by content hash; no labels
    bad_images: tuple[BadImage, ...]
    copies: int  # files with the content of another one
    passed_over: tuple[str, ...] = ()  # in words, the files that are no images

    @property
    def picture_set(self) -> "Pictures":
        return self.seen_by(lambda sample: open_picture(sample.image))

    def seen_by(self, look: Callable[[Sample], Picture]) -> "Pictures":
        """The same, the pictures opened by `look`."""
        return Pictures(self.samples, look)

    @property
    def content(self) -> str:
        """12 hex digits over which images these are, wherever they lie."""
        return short_hash([sample.sha256 for sample in self.samples])

    @property
    def notes(self) -> tuple[str, ...]:
        copies = [f"{self.copies} files are copies of others and count once"] if self.copies else []
        return (*copies, *self.passed_over, *describe_bad_images(self.bad_images))


class Pictures:
    """Pictures by number."""

    __slots__ = ("__look", "__samples")

    def __init__(self, samples: Sequence[Sample], look: Callable[[Sample], Picture]) -> None:
        self.__samples, self.__look = tuple(samples), look

    def __len__(self) -> int:
        return len(self.__samples)

    def __call__(self, indices: Sequence[int]) -> list[Picture]:
        return [self.__look(self.__samples[i]) for i in indices]


def open_unlabelled(root: Path | str, *, cache_dir: Path | None = None) -> Unlabelled:
    """All readable images below `root`, in whatever folders; what these are called plays no part."""
    root = user_path(root)
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder; images= takes a folder of unlabelled images")
    inspector = Inspector(root, cache_dir=cache_dir, strict=False)
    inspector.inspect(Sample(file, key=file.relative_to(root).as_posix()) for file in list_images(root, recursive=True))
    found = sorted(inspector.seen, key=lambda sample: (sample.sha256, sample.key))
    once = {sample.sha256: sample for sample in reversed(found)}
    if not once:
        raise DatasetError(f"{root} holds no readable image")
    return Unlabelled(
        root, tuple(once[sha256] for sha256 in sorted(once)), inspector.bad_images, len(found) - len(once), tuple(passed_over([root]))
    )
