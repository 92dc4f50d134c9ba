"""protocols.MLLM on a Qwen2.5-VL module."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fgvr.runtime.conversation import Answer, Conversation, Conversing, Watch
from fgvr.runtime.loaders.decoding import decode
from fgvr.runtime.loaders.prompt_limits import PIXELS_PER_TOKEN, PromptLimit
from fgvr.runtime.loaders.scoring import continue_prefix, prefill
from fgvr.runtime.loaders.torch_model import TorchModel
from fgvr.runtime.sizes.qwen import PROMPT_TOKENS, SCORING_BYTES
from fgvr.types import Scores

if TYPE_CHECKING:
    from fgvr.runtime.conversation import Images
    from fgvr.runtime.devices.base import Device

_CHARACTERS_PER_TOKEN = 3  # English has four: an estimate that errs on the long side
_TEMPLATE = 32  # tokens of the chat template


class QwenMLLM(TorchModel, Conversing):
    """Batches are padded on the left. Answers are greedy whatever the folder recommends."""

    def __init__(
        self, fingerprint: str, module: Any, processor: Any, lock: threading.Lock, limit: PromptLimit, *, quantized: bool = False
    ) -> None:
        super().__init__(fingerprint, module, lock)
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._limit, self._quantized = limit, quantized
        self._end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        stops = module.generation_config.eos_token_id
        self._stops = [self._end, *(stops if isinstance(stops, list) else [stops] if stops is not None else [])]
        self.tokens_per_item = limit.pixels // PIXELS_PER_TOKEN + PROMPT_TOKENS

    def lengths(self, images: Images, prompts: Sequence[str], system: str) -> list[int]:
        """Estimated tokens of each prompt with its images; nothing is tokenised."""
        asks = [Conversation.single(*pair, system) for pair in zip(images, prompts, strict=True)]
        seen = [sum(min(i.width * i.height, self._limit.pixels) // PIXELS_PER_TOKEN for i in ask.images) for ask in asks]
        return [count + len(ask.text) // _CHARACTERS_PER_TOKEN + _TEMPLATE for count, ask in zip(seen, asks, strict=True)]

    def place(self, device: Device) -> None:
        if not self._quantized:
            super().place(device)
        elif (allocate := getattr(device, "allocate", None)) is not None:  # loaded on its device, where it stays; a simulated one counts
            self._claim = allocate(self.nbytes)

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        import torch

        if not asks:
            return []
        inputs = self.inputs(asks, max(ask.sampling.max_new_tokens for ask in asks))
        with torch.inference_mode():
            return decode(self._module, inputs, [ask.sampling for ask in asks], self._tokenizer, self._stops, watch)

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        """The prompt of each item is computed once; its cache is then shared by all continuations."""
        import torch

        if not prompts:
            return []
        inputs = self.inputs([Conversation.single(*pair, system) for pair in zip(images, prompts, strict=True)])
        with self._lock:
            tokens = [
                [[*self._tokenizer(text, add_special_tokens=False).input_ids, self._end] for text in texts] for texts in continuations
            ]
        with torch.inference_mode():
            prefix = prefill(self._module, inputs)
            likelihoods = continue_prefix(self._module, prefix, tokens, pad=self._tokenizer.pad_token_id, limit=SCORING_BYTES)
        asked = inputs["attention_mask"].sum(1).tolist()
        return [Scores(tuple(sums), tuple(map(len, texts)), count) for sums, texts, count in zip(likelihoods, tokens, asked, strict=True)]

    def inputs(self, asks: Sequence[Conversation], new_tokens: int = 0) -> dict[str, Any]:
        """What the module takes: left-padded ids, mask, pixels, grids, token kinds; on the module's device.

        Raises ConfigError for a prompt that is longer than the model's context.
        """
        texts = [chat(self._processor, ask) for ask in asks]
        with self._lock:
            for text, ask in zip(texts, asks, strict=True):
                self._limit.check(text, ask.images, new_tokens, lambda text: self._tokenizer(text).input_ids)
            images = [image for ask in asks for image in ask.images]
            encoded = self._processor(text=texts, images=images or None, padding=True, return_tensors="pt")
        inputs = dict(encoded.to(self._module.device))
        inputs.setdefault("mm_token_type_ids", inputs["input_ids"].new_zeros(inputs["input_ids"].shape))
        return inputs


def chat(processor: Any, ask: Conversation) -> str:
    """The chat template's text up to where the answer begins."""
    return processor.apply_chat_template(ask.for_template(), add_generation_prompt=True, tokenize=False)
