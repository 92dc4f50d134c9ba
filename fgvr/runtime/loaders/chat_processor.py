"""From conversations to what a module takes, by the processor and chat template of its family; and how long a prompt may be.

The length is found out before pixels are cut into patches: a prompt without end would take all memory there is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from fgvr.errors import ConfigError
from fgvr.runtime.conversation import Conversation, Turn
from fgvr.runtime.loaders.base import pil, scaled_down
from fgvr.runtime.sizes.qwen import PROMPT_TOKENS

if TYPE_CHECKING:
    from PIL.Image import Image

    from fgvr.runtime.conversation import Images

_LONGEST = 64  # characters of a token on average, at most: what has more is refused without being tokenised
_CHARACTERS_PER_TOKEN = 3  # English has four: an estimate that errs on the long side
_TEMPLATE = 32  # tokens of the chat template
_LARGE = 2048  # pixels of a side: a picture that gets as many tokens as any
_MARK = "fgvr-answer"


@dataclass(frozen=True, slots=True)
class Limit:
    """`tokens`: of one prompt and its answer. `why`: whose limit it is."""

    tokens: int
    why: str

    def check(self, text: str, new_tokens: int, *, most: int, shown: Callable[[], int], count: Callable[[], int]) -> None:
        """Raises ConfigError with the numbers for a prompt that is too long.

        Args:
            most: tokens of its pictures, at most.
            shown: the same, exactly; asked, like `count` (tokens of the text), only where it decides.
        """
        if len(text.encode("utf-8", "replace")) + most + new_tokens <= self.tokens:  # a token has one byte at least
            return
        if len(text) > _LONGEST * self.tokens:
            raise self._too_long(f"{len(text):,} characters", new_tokens)
        if (tokens := count() + shown()) + new_tokens > self.tokens:
            raise self._too_long(f"{tokens:,} tokens", new_tokens)

    def _too_long(self, size: str, new_tokens: int) -> ConfigError:
        message = f"the prompt has {size} with its images, beside {new_tokens:,} for the answer: more than the {self.tokens:,} tokens"
        return ConfigError(f"{message} of {self.why}; shorten the texts or show fewer images")


def smart_tokens(image_processor: Any) -> Callable[[int, int], int]:
    """Tokens of a picture by its width and height, as Qwen's models resize it."""
    factor = image_processor.patch_size * image_processor.merge_size
    least, most = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]

    @cache
    def count(width: int, height: int) -> int:
        from qwen_vl_utils import smart_resize  # imports torchvision: after the processor has

        high, wide = smart_resize(height, width, factor=factor, min_pixels=min(least, most), max_pixels=most)
        return high * wide // factor**2

    return count


class ChatProcessor:
    """The processor of one model, used by one thread at a time: tokenizers change their own settings in each call."""

    def __init__(
        self,
        processor: Any,
        context: Limit,
        *,
        image_tokens: Callable[[int, int], int] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """Args:
        image_tokens: tokens of a picture by width and height; None: a picture of that size is processed and its tokens are counted.
        max_pixels: larger pictures are scaled down before the processor sees them; None: the processor has its own limit.
        """
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.lock = threading.Lock()
        self._context, self._max_pixels = context, max_pixels
        self._image_tokens, self._is_quick = image_tokens or cache(self._counted), image_tokens is not None

    def text(self, ask: Conversation) -> str:
        """The chat template's text up to where the answer begins; where the last turn is an answer, up to its end."""
        from jinja2 import TemplateError

        begun = ask.turns[-1].role != "assistant"
        try:
            return self.processor.apply_chat_template(ask.for_template(), add_generation_prompt=begun, tokenize=False)
        except TemplateError:
            if ask.turns[0].role != "system" or len(ask.turns) == 1:
                raise
            system, first, *rest = ask.turns  # a family without a system role
            joined = Conversation((Turn(first.role, (*system.parts, "\n\n", *first.parts)), *rest))
            return self.processor.apply_chat_template(joined.for_template(), add_generation_prompt=begun, tokenize=False)

    def answers(self, continuations: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of whole answers, each with the token that ends its turn."""
        end = self.end
        with self.lock:
            return [[[*self.tokenizer(text, add_special_tokens=False).input_ids, end] for text in texts] for texts in continuations]

    @cached_property
    def end(self) -> int:
        """What the template puts after an answer; it need not be the tokenizer's end of sequence (Gemma)."""
        tail = self.text(Conversation((Turn("user", ("?",)), Turn("assistant", (_MARK,))))).rpartition(_MARK)[2]
        with self.lock:
            tokens = self.tokenizer(tail, add_special_tokens=False).input_ids
        return tokens[0] if tokens and tokens[0] in self.tokenizer.added_tokens_decoder else self.tokenizer.eos_token_id

    @cached_property
    def tokens_per_item(self) -> int:
        """Tokens of a prompt with one picture, as the memory plan has them."""
        return self._most + PROMPT_TOKENS

    def lengths(self, images: Images, prompts: Sequence[str], system: str) -> list[int]:
        """Estimated tokens of each prompt with its images; nothing is tokenised."""
        asks = [Conversation.single(*pair, system) for pair in zip(images, prompts, strict=True)]
        return [self._shown(ask) + len(ask.text) // _CHARACTERS_PER_TOKEN + _TEMPLATE for ask in asks]

    def check(self, ask: Conversation, batch_size: int) -> str:
        """The prompt's text. Raises ConfigError with the numbers when context or memory plan have no room for it and its answer."""
        text = self.text(ask)

        def count() -> int:
            with self.lock:
                return len(self.tokenizer(text).input_ids)

        self._limit(batch_size).check(
            text,
            ask.sampling.max_new_tokens,
            most=self._shown(ask),
            shown=lambda: sum(self._image_tokens(*pil(image).size) for image in ask.images),
            count=count,
        )
        return text

    def inputs(self, asks: Sequence[Conversation], batch_size: int) -> Any:
        """Left-padded ids, mask, pixels, and what else the family wants. Raises ConfigError for a prompt that is too long."""
        texts = [self.check(ask, batch_size) for ask in asks]
        images = [[self._prepared(image) for image in ask.images] for ask in asks]
        begins = self.tokenizer.bos_token
        marked = {"add_special_tokens": False} if begins is not None and texts[0].startswith(begins) else {}
        with self.lock:
            return self.processor(text=texts, images=images if any(images) else None, padding=True, return_tensors="pt", **marked)

    def _limit(self, batch_size: int) -> Limit:
        planned = max(1, batch_size) * self.tokens_per_item
        if planned >= self._context.tokens:
            return self._context
        return Limit(planned, f"a batch in the memory plan (models.mllm.batch_size={batch_size})")

    def _prepared(self, image: Image) -> Image:
        return pil(image) if self._max_pixels is None else scaled_down(pil(image), self._max_pixels)

    def _shown(self, ask: Conversation) -> int:
        """Tokens of its pictures: exact where that is quick, else the most that they can have."""
        return sum(self._image_tokens(*pil(image).size) if self._is_quick else self._most for image in ask.images)

    @cached_property
    def _most(self) -> int:
        """Of one picture, at most."""
        return max(self._image_tokens(*sides) for sides in ((_LARGE, _LARGE), (_LARGE, _LARGE // 20), (_LARGE // 20, _LARGE)))

    def _counted(self, width: int, height: int) -> int:
        from PIL import Image

        blank = self._prepared(Image.new("RGB", (width, height)))
        with_it, without = (self.text(Conversation.single(images, "?")) for images in (blank, ()))
        with self.lock:
            found = self.processor(text=[with_it], images=[[blank]])["input_ids"][0]
            return len(found) - len(self.tokenizer(without).input_ids)
