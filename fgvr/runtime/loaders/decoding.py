"""Answers drawn token by token for a batch of prompts: greedy or sampled, each by its own rules, each ended on its own.

Greedy answers are those of transformers' `generate`. Finished rows leave the batch, so the slowest answer does not cost the others' work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fgvr.runtime.conversation import Answer, GrowingAnswer, Sampling, Token, Watch
from fgvr.runtime.loaders.scoring import cache_argument, position_ids, prefill

if TYPE_CHECKING:
    import torch


COLDEST = 1e-4  # below this temperature the likeliest token is drawn: dividing by less leaves the range of numbers


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
