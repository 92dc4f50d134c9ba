"""protocols.MLLM on an mlx-vlm module, and what lies between it and pictures and text. One prompt at a time.

Like TransformersMLLM: greedy whatever the folder recommends; scores include the turn's end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ConfigError
from fgvr.runtime.conversation import Conversation, Turn
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.base import pil, scaled_down
from fgvr.runtime.loaders.chat_processor import Limit
from fgvr.runtime.loaders.decoding import rows_at_once
from fgvr.runtime.sizes.qwen import SCORING_BYTES
from fgvr.types import Reply, Scores
from fgvr.utils.batches import chunks

if TYPE_CHECKING:
    import mlx.core as mx

    from fgvr.runtime.conversation import Images

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
            images=[scaled_down(pil(image).convert("RGB"), self._max_pixels) for image in ask.images] or None,
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


@dataclass(frozen=True, slots=True)
class Prefix:
    """One computed prompt: its cache, (V,) log-probabilities of the next token, what the family needs to find later positions."""

    cache: list[Any]
    next_log_probs: Any
    positions: dict[str, Any]


class MlxMLLM:
    """One prompt at a time. Not safe for two calls at once (the module keeps positions); the pool lets one in at a time."""

    def __init__(self, fingerprint: str, module: Any, prompts: MlxProcessor) -> None:
        from mlx.utils import tree_flatten

        self.fingerprint = fingerprint
        arrays: list[Any] = [array for _, array in tree_flatten(module.parameters())]
        self.nbytes = sum({id(array): array.nbytes for array in arrays}.values())
        self._module, self._prompts = module, prompts

    def generate(self, images: Images, prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128) -> list[Reply]:
        replies = []
        for pair in zip(images, prompts, strict=True):
            inputs = self._prompts.inputs(Conversation.single(*pair, system, max_new_tokens))
            tokens = list(self._greedy(inputs, max_new_tokens))
            answer = [token for token in tokens if token not in self._prompts.stops]
            replies.append(Reply(self._prompts.decode(answer), prompt_tokens=inputs.ids.size, new_tokens=len(tokens)))
        return replies

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        """The prompt of each item is computed once; its cache is then shared by all continuations."""
        scores = []
        for image, prompt, texts in zip(images, prompts, continuations, strict=True):
            inputs = self._prompts.inputs(Conversation.single(image, prompt, system, 0))
            candidates = [self._prompts.tokens(text) for text in texts]
            prefix = self._prefill(inputs)
            sums: list[float] = []
            cache = sum(layer.nbytes for layer in prefix.cache)
            for part in chunks(candidates, rows_at_once(candidates, cache, prefix.next_log_probs.size, SCORING_BYTES)):
                sums += self._continue(prefix, part)
            scores.append(Scores(tuple(sums), tuple(map(len, candidates)), inputs.ids.size))
        return scores

    def _greedy(self, inputs: Inputs, most: int) -> Iterator[int]:
        """Tokens up to and including the one that stops."""
        from mlx_vlm.generate import generate_step

        steps = generate_step(
            inputs.ids, self._module, inputs.pixels, inputs.mask, max_tokens=most, temperature=0.0, top_p=1.0, top_k=0, **inputs.extra
        )
        for token, _ in itertools.islice(steps, most):
            yield int(token)
            if token in self._prompts.stops:
                return

    def _prefill(self, inputs: Inputs) -> Prefix:
        import mlx.core as mx
        from mlx_vlm.models.cache import make_prompt_cache

        features = self._module.get_input_embeddings(inputs.ids, inputs.pixels, mask=inputs.mask, **inputs.extra)
        known = {name: value for name, value in features.to_dict().items() if name != "inputs_embeds" and value is not None}
        cache = make_prompt_cache(self._module.language_model)
        output = self._module.language_model(
            inputs.ids, inputs_embeds=features.inputs_embeds, cache=cache, **(inputs.extra | known | {"logits_to_keep": 1})
        )
        if output.cross_attention_states is not None or output.encoder_outputs is not None:
            kind = self._module.config.model_type
            raise ConfigError(
                f"answers of {kind} cannot be scored (its pictures are attended to from outside the prompt); slow.decoder=reason"
            )
        last = output.logits[0, -1].astype(mx.float32)
        log_probs = last - mx.logsumexp(last)
        mx.eval(log_probs, [layer.state for layer in cache])
        return Prefix(cache, log_probs, {"rope_deltas": features.rope_deltas} if features.rope_deltas is not None else {})

    def _continue(self, prefix: Prefix, candidates: Sequence[Sequence[int]]) -> list[float]:
        """Per candidate the summed log-probability of its tokens, in nats. Rows are padded on the right, where nothing looks at it."""
        import mlx.core as mx

        lengths = mx.array([len(tokens) for tokens in candidates])
        width = max(map(len, candidates))
        tokens = mx.array([[*tokens, *[0] * (width - len(tokens))] for tokens in candidates])
        sums = prefix.next_log_probs[tokens[:, 0]]
        if width > 1:
            cache = [_repeated(layer, len(candidates)) for layer in prefix.cache]
            logits = self._module.language_model(tokens[:, :-1], cache=cache, **prefix.positions).logits
            log_probs = mx.stack([_log_probs(row, targets) for row, targets in zip(logits, tokens[:, 1:], strict=True)])
            real = mx.arange(1, width)[None] < lengths[:, None]
            sums = sums + mx.where(real, log_probs, 0.0).sum(axis=1)
        return sums.tolist()


def _repeated(layer: Any, count: int) -> Any:
    """A copy of one layer's cache with a row per candidate; the original stays for the next rows."""
    import mlx.core as mx
    from mlx.utils import tree_map

    return type(layer).from_state(tree_map(lambda array: mx.repeat(array, count, axis=0), layer.state), layer.meta_state)


def _log_probs(logits: mx.array, targets: mx.array) -> mx.array:
    """(W, V) and (W,) token ids -> (W,) float32, in nats; done before the next row, so that one row at a time is float32."""
    import mlx.core as mx

    exact = logits.astype(mx.float32)
    found = mx.take_along_axis(exact, targets[:, None], axis=1).squeeze(1) - mx.logsumexp(exact, axis=1)
    mx.eval(found)
    return found
