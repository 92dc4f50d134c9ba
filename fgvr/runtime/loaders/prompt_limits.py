"""How long a prompt may be, found out before its pixels are cut into patches: a prompt without end would take all memory there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fgvr.errors import ConfigError

PIXELS_PER_TOKEN = 28 * 28
_LONGEST = 64  # characters of a token on average, at most: what has more is refused without being tokenised


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """`tokens`: of one prompt and its answer. `why`: whose limit it is. `pixels`: cap of an image."""

    tokens: int
    why: str
    pixels: int

    def check(self, text: str, images: Sequence[Any], new_tokens: int, tokenize: Callable[[str], Sequence[int]]) -> None:
        """Args: text: as the chat template writes it. images: PIL. Raises ConfigError with the numbers."""
        room = self.tokens - new_tokens - sum(self._image_tokens(image) for image in images)
        if len(text.encode("utf-8", "replace")) <= room:  # a token has one byte at least
            return
        if len(text) > _LONGEST * self.tokens:
            self._refuse(f"{len(text):,} characters", new_tokens)
        if (count := len(tokenize(text))) > room:
            self._refuse(f"{count + self.tokens - new_tokens - room:,} tokens", new_tokens)

    def _refuse(self, size: str, new_tokens: int) -> None:
        message = f"the prompt has {size} with its images, beside {new_tokens:,} for the answer: more than the {self.tokens:,} tokens"
        raise ConfigError(f"{message} of {self.why}; shorten the texts or show fewer images")

    def _image_tokens(self, image: Any) -> int:
        sides = (image.width // 28 + 1) * (image.height // 28 + 1)
        return max(4, min(sides, self.pixels // PIXELS_PER_TOKEN))
