"""Descriptions of classes. The MLLM writes them from images, never from a dataset's attribute tables."""

from dataclasses import dataclass
from typing import Literal

from fgvr.types import Picture

Status = Literal["described", "failed", "absent"]


@dataclass(frozen=True, slots=True)
class Description:
    """A description, or the reason why there is none. The next build asks again for a `failed` one; an `absent` one had no image."""

    text: str
    status: Status = "described"


@dataclass(frozen=True, slots=True, eq=False)
class DescribeRequest:
    """A class to describe, and the images that the MLLM sees."""

    name: str
    superclass: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """One row of classes.parquet."""

    id: str
    name: str
    superclass: str
    aliases: tuple[str, ...]
    description: Description
    # Written without the images of fold 0, and of fold 1. Leave-one-out uses them for a class's own images.
    fold_descriptions: tuple[Description, Description]
    shots: int

    @property
    def failed(self) -> bool:
        """Whether a description failed, the class's own or that of a fold."""
        return any(description.status == "failed" for description in (self.description, *self.fold_descriptions))
