"""Descriptions of classes. They come from the MLLM and images only, never from a dataset's attribute tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fgvr.types import Picture

Status = Literal["described", "failed", "absent"]


@dataclass(frozen=True, slots=True)
class Description:
    """A description, or the fact that there is none: `failed` is asked for again by the next build, `absent` had no picture to show."""

    text: str
    status: Status = "described"


@dataclass(frozen=True, slots=True, eq=False)
class DescribeRequest:
    """A class to describe, and the pictures that the MLLM is shown."""

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
    # Written without the images of fold 0, of fold 1: what leave-one-out uses for a class's own images.
    fold_descriptions: tuple[Description, Description]
    shots: int

    @property
    def failed(self) -> bool:
        """Whether a description failed, its own or that of a half."""
        return any(description.status == "failed" for description in (self.description, *self.fold_descriptions))
