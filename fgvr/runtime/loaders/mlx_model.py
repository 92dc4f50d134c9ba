"""protocols.MLLM on an mlx-vlm module. Like TransformersMLLM: greedy whatever the folder recommends; scores include the turn's end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgvr.errors import ConfigError
from fgvr.runtime.conversation import Conversation
from fgvr.runtime.loaders.mlx_processor import Inputs, MlxProcessor
from fgvr.runtime.loaders.scoring import parts, rows_at_once
from fgvr.runtime.sizes.qwen import SCORING_BYTES
from fgvr.types import Reply, Scores

if TYPE_CHECKING:
    import mlx.core as mx

    from fgvr.runtime.conversation import Images


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
            for part in parts(candidates, self._rows_at_once(prefix, candidates)):
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

    def _rows_at_once(self, prefix: Prefix, candidates: Sequence[Sequence[int]]) -> int:
        return rows_at_once(candidates, sum(layer.nbytes for layer in prefix.cache), prefix.next_log_probs.size, SCORING_BYTES)

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
