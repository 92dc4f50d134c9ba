"""protocols.MLLM on any image-text-to-text module of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.conversation import Answer, Conversation, Conversing, Watch
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.chat_processor import ChatProcessor
from fgvr.runtime.loaders.decoding import continue_prefix, decode, prefill
from fgvr.runtime.loaders.tensors import TorchModel
from fgvr.runtime.sizes.qwen import SCORING_BYTES
from fgvr.types import Scores

if TYPE_CHECKING:
    from fgvr.runtime.conversation import Images

_ASKED = ("input_ids", "attention_mask", "position_ids", "use_cache", "logits_to_keep")  # what our passes hand to a module


class TransformersMLLM(TorchModel, Conversing):
    """Batches are padded on the left. Answers are greedy whatever the folder recommends."""

    def __init__(self, fingerprint: str, module: Any, prompts: ChatProcessor, batch_size: int, *, quantized: bool = False) -> None:
        super().__init__(fingerprint, module, prompts.lock, stays=quantized)
        self._prompts, self._tokenizer, self._batch_size = prompts, prompts.tokenizer, batch_size
        stops = module.generation_config.eos_token_id
        self._stops = [prompts.end, *(stops if isinstance(stops, list) else [stops] if stops is not None else [])]
        self.tokens_per_item = prompts.tokens_per_item

    def lengths(self, images: Images, prompts: Sequence[str], system: str) -> list[int]:
        """Estimated tokens of each prompt with its images; nothing is tokenised."""
        return self._prompts.lengths(images, prompts, system)

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        import torch

        if not asks:
            return []
        inputs = self.inputs(asks)
        with torch.inference_mode():
            return decode(self._module, inputs, [ask.sampling for ask in asks], self._tokenizer, self._stops, watch)

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        """The prompt of each item is computed once; its cache is then shared by all continuations."""
        import torch

        if not prompts:
            return []
        inputs = self.inputs([Conversation.single(*pair, system, 0) for pair in zip(images, prompts, strict=True)])
        tokens = self._prompts.answers(continuations)
        with torch.inference_mode():
            prefix = prefill(self._module, inputs)
            likelihoods = continue_prefix(self._module, prefix, tokens, pad=self._tokenizer.pad_token_id, limit=SCORING_BYTES)
        asked = inputs["attention_mask"].sum(1).tolist()
        return [Scores(tuple(sums), tuple(map(len, texts)), count) for sums, texts, count in zip(likelihoods, tokens, asked, strict=True)]

    def inputs(self, asks: Sequence[Conversation]) -> dict[str, Any]:
        """What the module takes, on its device. Raises ConfigError for a prompt that context or memory plan have no room for."""
        return dict(self._prompts.inputs(asks, self._batch_size).to(self._module.device))


def require_decoder(folder: object, kind: type) -> None:
    """Raises ModelLoadError for a module that our passes cannot use: an encoder-decoder, or one whose pictures are outside the prompt."""
    forward: Callable[..., Any] = kind.forward
    takes = inspect.signature(forward).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    lacks = [name for name in _ASKED if name not in takes and not (free and name == "use_cache")]
    apart = [name for name in takes if name.startswith(("cross_attention", "decoder_"))]
    if lacks or apart:
        said = f"its forward pass takes no {', '.join(lacks)}" if lacks else "it reads pictures from outside the prompt, by cross-attention"
        raise ModelLoadError(
            f"{folder} is loaded as {kind.__name__}, which is not supported: {said}.\n"
            f"Have an engine hold this model (models/mllm=remote), or take {files.OFFLINE}"
        )
