"""Answers drawn token by token for a batch of prompts: greedy or sampled, each by its own rules, each ended on its own.

Greedy answers are those of `module.generate`. Finished rows leave the batch, so the slowest answer does not cost the others' work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fgvr.runtime.conversation import Answer, Sampling, Token, Watch, Writer
from fgvr.runtime.loaders.scoring import cache_argument, prefill

if TYPE_CHECKING:
    import torch


COLDEST = 1e-4  # below this temperature the likeliest token is drawn: dividing by less leaves the range of numbers


class _Row:
    """One answer while it grows."""

    def __init__(self, index: int, sampling: Sampling, prompt_tokens: int, tokenizer: Any) -> None:
        self.index, self.sampling, self.prompt_tokens = index, sampling, prompt_tokens
        self._tokenizer = tokenizer
        self.writer = Writer(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), sampling.stop)
        self.tokens: list[Token] = []
        self.new_tokens = 0
        self.finish: Any = None
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

    def take(self, token: int, log_probs: torch.Tensor, stops: Sequence[int]) -> None:
        self.new_tokens += 1
        if token in stops:
            self.finish = "stop"
            return
        if self.sampling.top_logprobs is not None:
            self.tokens.append(self._measured(token, log_probs))
        self.writer.add(token)
        if self.writer.stopped:
            self.finish = "stop"
        elif self.new_tokens >= self.sampling.max_new_tokens:
            self.finish = "length"

    def answer(self) -> Answer:
        return Answer(self.writer.text, self.finish, self.prompt_tokens, self.new_tokens, tuple(self.tokens))

    def _measured(self, token: int, log_probs: torch.Tensor) -> Token:
        most = self.sampling.top_logprobs or 0
        top: tuple[tuple[str, float], ...] = ()
        if most:
            values, ids = log_probs.topk(min(most, log_probs.numel()))
            top = tuple((self._tokenizer.decode([i]), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
        return Token(self._tokenizer.decode([token]), float(log_probs[token]), top)


def decode(
    module: Any, inputs: dict[str, Any], samplings: Sequence[Sampling], tokenizer: Any, stops: Sequence[int], watch: Watch
) -> list[Answer]:
    """One answer per prompt, in order. Call in inference mode; `inputs` are left-padded."""
    import torch

    prefix = prefill(module, inputs)
    rows = [
        _Row(i, sampling, count, tokenizer) for i, (sampling, count) in enumerate(zip(samplings, prefix.mask.sum(1).tolist(), strict=True))
    ]
    going, mask, cache, log_probs, position = list(rows), prefix.mask, prefix.cache, prefix.next_log_probs, prefix.next_position
    while True:
        chosen = [row.choose(log_probs[i]) for i, row in enumerate(going)]
        for i, (row, token) in enumerate(zip(going, chosen, strict=True)):
            row.take(token, log_probs[i], stops)
            if not watch(row.index, row.writer.text if row.finish else row.writer.certain, row.tokens) and not row.finish:
                row.finish = "cancelled"
        kept = [i for i, row in enumerate(going) if not row.finish]
        if not kept:
            return [row.answer() for row in rows]
        if len(kept) < len(going):
            index = torch.tensor(kept, device=mask.device)
            going, chosen = [going[i] for i in kept], [chosen[i] for i in kept]
            mask, position = mask[index], position[index]
            cache.batch_select_indices(index)
        mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
        output = module(
            input_ids=torch.tensor(chosen, device=mask.device)[:, None],
            attention_mask=mask,
            position_ids=position[:, None].expand(3, -1, -1),
            **cache_argument(module, cache),
            use_cache=True,
            logits_to_keep=1,
        )
        position = position + 1
        log_probs = output.logits[:, -1].float().log_softmax(-1)
