"""Which prompts go through an MLLM together: alike in length, so that little is padding, and no more tokens than working memory is for.

Lengths are estimates made before anything is tokenised: they order and cap, and nothing is answered by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike


@runtime_checkable
class Measured(Protocol):
    """An MLLM that can say how long its prompts will be."""

    tokens_per_item: int
    """What working memory was planned with, images included."""

    def lengths(self, images: Sequence[ImageLike | Sequence[ImageLike]], prompts: Sequence[str], system: str) -> list[int]:
        """Tokens of each prompt with its images, about."""
        ...


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Positions by length, equal ones in their order. What needs the most memory comes first: if that fails, it fails once."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def take(lengths: Sequence[int], order: Sequence[int], start: int, most: int, room: int) -> int:
    """Where the batch that begins at `start` of `order` (longest first) ends: at most `most` prompts and, padded to its longest, at most
    `room` tokens. A single prompt goes alone, however long."""
    longest = max(1, lengths[order[start]])
    return min(len(order), start + max(1, min(most, room // longest)))
