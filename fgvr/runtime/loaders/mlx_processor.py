"""From pictures and text to what an mlx-vlm module takes, and from its tokens back to text. One prompt at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.runtime.conversation import Conversation, Turn
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.base import pil
from fgvr.runtime.loaders.chat_processor import Limit

_MARK = "fgvr-answer"
_PIXELS_PER_TOKEN = 28 * 28  # as Qwen's; families with tiles take fewer tokens, or about as many


@dataclass(frozen=True, slots=True)
class Inputs:
    """(1, T) token ids, pixels or None, (1, T) mask, and what else the family wants (Qwen: the grid)."""

    ids: Any
    pixels: Any
    mask: Any
    extra: dict[str, Any]


class MlxProcessor:
    """Any family, by mlx-vlm's own templates and preprocessing. Pictures above `max_pixels` are scaled down before it sees them.

    Whether pictures stand before the text or after it is as mlx-vlm has it for the family (Qwen2-VL: after).
    """

    def __init__(self, processor: Any, config: Any, stops: Sequence[int], max_pixels: int, limit: Limit) -> None:
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._processor, self._config, self._max_pixels, self._limit = processor, config, max_pixels, limit
        self.end = self._end_of_turn()
        self.stops = frozenset({*stops, self.end})

    def inputs(self, ask: Conversation) -> Inputs:
        from mlx_vlm.utils import prepare_inputs, should_add_special_tokens

        data = prepare_inputs(
            self._processor,
            images=[self._capped(pil(image).convert("RGB")) for image in ask.images] or None,
            prompts=self.checked(ask),
            image_token_index=getattr(self._config, "image_token_index", None),
            add_special_tokens=should_add_special_tokens(self._config.model_type, self._processor),
        )
        return Inputs(data.pop("input_ids"), data.pop("pixel_values", None), data.pop("attention_mask", None), dict(data))

    def checked(self, ask: Conversation) -> str:
        """The prompt's text. Raises ConfigError when the context has no room for it and its answer."""
        text = self.text(ask)
        shown = sum(min(image.width * image.height, self._max_pixels) // _PIXELS_PER_TOKEN for image in ask.images)
        self._limit.check(
            text, ask.sampling.max_new_tokens, most=shown, shown=lambda: shown, count=lambda: len(self.tokenizer(text).input_ids)
        )
        return text

    def text(self, ask: Conversation) -> str:
        """The chat template's text up to where the answer begins; where the last turn is an answer, up to its end."""
        from mlx_vlm.prompt_utils import apply_chat_template

        turns = [{"role": turn.role, "content": " ".join(part for part in turn.parts if isinstance(part, str))} for turn in ask.turns]
        # A processor would warn about mlx-vlm's keywords with each call.
        template = self.tokenizer if getattr(self.tokenizer, "chat_template", None) else self._processor
        open_end = ask.turns[-1].role != "assistant"
        return str(apply_chat_template(template, self._config, turns, add_generation_prompt=open_end, num_images=len(ask.shown)))

    def tokens(self, answer: str) -> list[int]:
        """A whole answer, with the token that ends its turn."""
        return [*self.tokenizer(answer, add_special_tokens=False).input_ids, self.end]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()

    def _end_of_turn(self) -> int:
        """What the template puts after an answer; it need not be the tokenizer's end of sequence (Gemma, Llama)."""
        tail = self.text(Conversation((Turn("user", ("?",)), Turn("assistant", (_MARK,))))).rpartition(_MARK)[2]
        tokens = self.tokenizer(tail, add_special_tokens=False).input_ids
        return tokens[0] if tokens and tokens[0] in self.tokenizer.all_special_ids else self.tokenizer.eos_token_id

    def _capped(self, image: Any) -> Any:
        scale = math.sqrt(self._max_pixels / (image.width * image.height))
        return image if scale >= 1 else image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


class QwenProcessor(MlxProcessor):
    """Qwen2.5-VL by transformers' own processor, so that it sees the very pixels and tokens that PyTorch's loader sees.

    mlx-vlm's port resizes with another library and differs by one grey level here and there.
    """

    def inputs(self, ask: Conversation) -> Inputs:
        import mlx.core as mx

        images = [pil(image).convert("RGB") for image in ask.images]
        data = self._processor(text=[self.checked(ask)], images=images or None, return_tensors="np")
        arrays = {name: mx.array(data[name]) for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw") if name in data}
        return Inputs(arrays.pop("input_ids"), arrays.pop("pixel_values", None), arrays.pop("attention_mask"), arrays)

    def text(self, ask: Conversation) -> str:
        open_end = ask.turns[-1].role != "assistant"
        return self._processor.apply_chat_template(ask.for_template(), add_generation_prompt=open_end, tokenize=False)


def open_processor(folder: Path, config: dict[str, Any], module_config: Any, *, max_pixels: int, limit: Limit) -> MlxProcessor:
    """For a model folder; called while mlx-vlm's processors are in place."""
    stops = _stops(folder, config)
    if config.get("model_type") == "qwen2_5_vl":
        from transformers import Qwen2_5_VLProcessor

        processor = Qwen2_5_VLProcessor.from_pretrained(folder, local_files_only=True)
        processor.image_processor.size = dict(processor.image_processor.size) | {"longest_edge": max_pixels}
        return QwenProcessor(processor, module_config, stops, max_pixels, limit)
    from mlx_vlm.utils import load_processor

    processor = load_processor(folder, False, trust_remote_code=False)
    return MlxProcessor(processor, module_config, stops, max_pixels, limit)


def _stops(folder: Path, config: dict[str, Any]) -> list[int]:
    """Every token the folder says may end an answer."""
    generation = folder / "generation_config.json"
    found: list[int] = []
    for source in (config, config.get("text_config") or {}, files.read_config(generation) if generation.is_file() else {}):
        tokens = source.get("eos_token_id")
        found += tokens if isinstance(tokens, list) else [tokens] if tokens is not None else []
    return found
