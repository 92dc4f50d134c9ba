"""A prompt is computed once; then its answer is drawn token by token, or given ones are scored, all of them by its key-value cache.

Greedy answers are those of transformers' `generate`. Each answer of a batch has its own rules and its own end, and finished rows leave the
batch, so that the slowest does not cost the others' work. Positions are always passed explicitly: no state of the module is read or left
behind.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgvr.runtime.conversation import Answer, GrowingAnswer, Sampling, Token, Watch
from fgvr.runtime.sizes.qwen import LOGIT_BYTES
from fgvr.utils.batches import chunks

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

COLDEST = 1e-4  # below this temperature the likeliest token is drawn: dividing by less leaves the range of numbers


@dataclass(frozen=True, slots=True)
class Prefix:
    """A computed batch of prompts: (B, T) mask, the cache, (B, V) log-probabilities of the next token, (B,) next positions."""

    mask: torch.Tensor
    cache: Any
    next_log_probs: torch.Tensor
    next_position: torch.Tensor


def prefill(module: Any, inputs: dict[str, Any]) -> Prefix:
    """One forward pass over left-padded prompts."""
    mask = inputs["attention_mask"]
    inputs, positions, following = _positions(module, inputs, mask)
    cache = new_cache(module)
    output = module(**inputs, **cache_argument(module, cache), position_ids=positions, use_cache=True, logits_to_keep=1)
    return Prefix(mask, cache, output.logits[:, -1].float().log_softmax(-1), following)


def _positions(module: Any, inputs: dict[str, Any], mask: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """The inputs, the positions of their tokens, and (B,) the positions that follow."""
    rope_index = _rope_index(module)
    if rope_index is None:
        return inputs, (mask.cumsum(1) - 1).clamp(min=0), mask.sum(1)
    inputs = {"mm_token_type_ids": inputs["input_ids"].new_zeros(inputs["input_ids"].shape)} | inputs
    taken = inspect.signature(rope_index).parameters
    positions, deltas = rope_index(**{name: value for name, value in inputs.items() if name in taken})
    # Image tokens share positions, so the next position is not the length: the model's own delta says by how much.
    return inputs, positions, mask.sum(1) + deltas.squeeze(1).to(mask.device)


def position_ids(module: Any, positions: torch.Tensor) -> torch.Tensor:
    """(B, W) positions of text as the module takes them: Qwen's have an axis each for time, height and width."""
    return positions if _rope_index(module) is None else positions.expand(3, -1, -1)


def _rope_index(module: Any) -> Callable[..., Any] | None:
    """The model's own way to positions of three axes; None for one whose positions count tokens."""
    return getattr(getattr(module, "model", module), "get_rope_index", None)


def new_cache(module: Any) -> DynamicCache:
    """An empty key-value cache for the module's language part."""
    from transformers import DynamicCache

    return DynamicCache(config=module.config.get_text_config())


def cache_argument(module: Any, cache: Any) -> dict[str, Any]:
    """The cache under the name that this version of transformers gives it: `cache` since 5.24, `past_key_values` before."""
    return {_cache_name(type(module)): cache}


@functools.cache
def _cache_name(kind: type) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


# --- answers that are drawn ------------------------------------------------------------------------------------------------------


def decode(
    module: Any, inputs: dict[str, Any], samplings: Sequence[Sampling], tokenizer: Any, stops: Sequence[int], watch: Watch
) -> list[Answer]:
    """One answer per prompt, in order. Call in inference mode; `inputs` are left-padded."""
    import torch

    prefix = prefill(module, inputs)
    prompt_tokens = prefix.mask.sum(1).tolist()
    rows = [_Row(i, sampling, tokenizer) for i, sampling in enumerate(samplings)]
    going, mask, cache, log_probs, position = list(rows), prefix.mask, prefix.cache, prefix.next_log_probs, prefix.next_position
    while True:
        chosen = [row.choose(log_probs[i]) for i, row in enumerate(going)]
        for i, (row, token) in enumerate(zip(going, chosen, strict=True)):
            row.take(token, row.measured(token, log_probs[i]), is_end=token in stops)
            row.show(watch, row.index)
        kept = [i for i, row in enumerate(going) if not row.finish]
        if not kept:
            return [row.answer(count) for row, count in zip(rows, prompt_tokens, strict=True)]
        if len(kept) < len(going):
            index = torch.tensor(kept, device=mask.device)
            going, chosen = [going[i] for i in kept], [chosen[i] for i in kept]
            mask, position = mask[index], position[index]
            cache.reorder_cache(index)
        mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
        output = module(
            input_ids=torch.tensor(chosen, device=mask.device)[:, None],
            attention_mask=mask,
            position_ids=position_ids(module, position[:, None]),
            **cache_argument(module, cache),
            use_cache=True,
            logits_to_keep=1,
        )
        position = position + 1
        log_probs = output.logits[:, -1].float().log_softmax(-1)


class _Row(GrowingAnswer):
    """One answer of a batch, with its own random numbers."""

    def __init__(self, index: int, sampling: Sampling, tokenizer: Any) -> None:
        super().__init__(sampling, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        self.index, self._tokenizer = index, tokenizer
        self._generator: torch.Generator | None = None

    def choose(self, log_probs: torch.Tensor) -> int:
        """(V,) -> a token id."""
        import torch

        sampling = self.sampling
        if sampling.temperature < COLDEST:
            return int(log_probs.argmax())
        if self._generator is None:
            self._generator = torch.Generator()  # on the CPU: the same draws on every device
            if sampling.seed is not None:
                self._generator.manual_seed(sampling.seed % 2**63)
            else:
                self._generator.seed()
        shares = (log_probs.cpu().double() / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            ranked, order = shares.sort(descending=True)
            beyond = ranked.cumsum(-1) - ranked >= max(sampling.top_p, 1e-12)  # the first whose sum reaches top_p is the last to stay
            shares = shares.clone()
            shares[order[beyond]] = 0
        return int(torch.multinomial(shares, 1, generator=self._generator))

    def measured(self, token: int, log_probs: torch.Tensor) -> Token | None:
        """The token with its log-probability, and the likeliest at its place; None where nobody asks."""
        if self.sampling.top_logprobs is None:
            return None
        values, ids = log_probs.topk(min(self.sampling.top_logprobs, log_probs.numel()))
        top = tuple((self._tokenizer.decode([i]), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
        return Token(self._tokenizer.decode([token]), float(log_probs[token]), top)


# --- answers that are given ------------------------------------------------------------------------------------------------------


def continue_prefix(
    module: Any, prefix: Prefix, candidates: Sequence[Sequence[Sequence[int]]], *, pad: int, limit: int
) -> list[list[float]]:
    """Per item, per candidate: the summed log-probability of its tokens, in nats. `limit`: bytes for cache copies or logits at once."""
    rows = [(item, tokens) for item, texts in enumerate(candidates) for tokens in texts]
    sums: list[float] = []
    kept = (getattr(layer, name, None) for layer in prefix.cache.layers for name in ("keys", "values"))
    cache = sum(tensor[0].nbytes for tensor in kept if tensor is not None and tensor.numel())
    for part in chunks(rows, rows_at_once([tokens for _, tokens in rows], cache, prefix.next_log_probs.shape[1], limit)):
        sums += _score_rows(module, prefix, part, pad).tolist()
    scored = iter(sums)
    return [[next(scored) for _ in texts] for texts in candidates]


def _score_rows(module: Any, prefix: Prefix, rows: Sequence[tuple[int, Sequence[int]]], pad: int) -> torch.Tensor:
    import torch

    device = prefix.mask.device
    items = torch.tensor([item for item, _ in rows], device=device)
    lengths = torch.tensor([len(tokens) for _, tokens in rows], device=device)
    width = int(lengths.max())
    tokens = torch.tensor([[*t, *[pad] * (width - len(t))] for _, t in rows], device=device)
    real = torch.arange(width, device=device)[None] < lengths[:, None]
    first = prefix.next_log_probs[items].gather(1, tokens[:, :1])
    if width == 1:
        return first.squeeze(1)
    steps = torch.arange(width - 1, device=device)
    logits = module(
        input_ids=tokens[:, :-1],
        attention_mask=torch.cat([prefix.mask[items], real[:, :-1].to(prefix.mask.dtype)], dim=1),
        position_ids=position_ids(module, prefix.next_position[items][:, None] + steps[None]),
        **cache_argument(module, _repeated(prefix.cache, items)),
        use_cache=True,
    ).logits
    return first.squeeze(1) + (_log_probs(logits, tokens[:, 1:]) * real[:, 1:]).sum(1)


def _log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(R, W, V) and (R, W) token ids -> (R, W) float32, in nats. In parts: float32 copies of all logits would be the widest moment, and
    on a CPU their pages cost more than the sums."""
    import torch

    size = max(1, LOGIT_BYTES // (4 * logits.shape[2]))
    parts = zip(logits.flatten(0, 1).split(size), targets.reshape(-1, 1).split(size), strict=True)
    found = [part.gather(1, ids).squeeze(1) - part.logsumexp(1) for part, ids in ((logit.float(), ids) for logit, ids in parts)]
    return torch.cat(found).view_as(targets)


def _repeated(cache: Any, items: torch.Tensor) -> Any:
    """A copy of the cache with one row per candidate; the original stays for the next part."""
    twin = copy.copy(cache)
    twin.layers = [_twin(layer) for layer in cache.layers]
    twin.reorder_cache(items)
    return twin


def _twin(layer: Any) -> Any:
    """A layer of any kind (full, sliding window, linear attention) that shares its tensors, which `reorder_cache` then replaces."""
    twin = copy.copy(layer)
    vars(twin).update({name: copy.copy(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    return twin


def rows_at_once(texts: Sequence[Sequence[int]], cache: int, vocabulary: int, limit: int) -> int:
    """How many continuations fit in `limit` bytes: each has a copy of the prompt's `cache` bytes, and logits over its tokens."""
    width = max(map(len, texts), default=1)
    return max(1, limit // max(cache, 3 * width * vocabulary * 4, 1))
