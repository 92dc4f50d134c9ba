"""Models whose answers are kept in the store, so that no question is asked twice.

`cached` makes one method of such a wrapper from one method of a protocol. The wrapper looks up all answers, asks the model for the
missing ones in one call, without repeats, and stores them in one transaction. Results keep the order of the input. The wrapper holds no
model of its own: when every answer is in the store, the model is not touched. Costs are counted both as asked and as computed.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from fgvr.protocols import MLLM, Cache, Chooser, Encoder, JointEncoder, reads_text
from fgvr.store.cache import MemoryCache
from fgvr.store.cost_tracking import ELSEWHERE, add_cost
from fgvr.types import Asked, Choice, Cost, Picture, Reply, Scores
from fgvr.utils.files import canonical_json, sha256_bytes
from fgvr.utils.images import pixels_sha256

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike

Method = TypeVar("Method", bound=Callable[..., Any])


class Cached:
    """A model and the cache of its answers, without the methods of its role."""

    def __init__(self, model: Any, cache: Cache, *, at_once: int | None = None) -> None:
        """Args: at_once: questions of one call and one transaction, which a crash may cost; None = all."""
        self.model, self._cache, self._at_once = model, cache, at_once
        self._found = MemoryCache(max_bytes=1 << 20)  # answers that were looked up in advance and will soon be asked for

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    def key(self, kind: str, *parts: object) -> str:
        """The store's key of one answer: a hash of the model and of everything else that the answer depends on."""
        return sha256_bytes(canonical_json([kind, self.fingerprint, *parts]).encode("utf-8", "backslashreplace"))

    def look_up(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The answers that are known, by key."""
        known = dict(self._found.get(keys))
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        return known | dict(self._cache.get(missing)) if missing else known

    def answers(
        self,
        keys: Sequence[str],
        known: Mapping[str, bytes],
        compute: Callable[[Sequence[int]], Sequence[bytes]],
        worth_keeping: Callable[[bytes], bool] = lambda value: True,
    ) -> list[bytes]:
        """One answer per key. `compute` gets the index of the first question of each missing key."""
        missing = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        indices, answers = sorted(missing.values()), dict(known)
        step = self._at_once or max(1, len(indices))
        for start in range(0, len(indices), step):
            asked = indices[start : start + step]
            fresh = {keys[i]: value for i, value in zip(asked, compute(asked), strict=True)}
            self._cache.put({key: value for key, value in fresh.items() if worth_keeping(value)})
            answers |= fresh
        return [answers[key] for key in keys]


def cached(
    signature: Method,
    kind: str,
    key: Callable[..., Sequence[object]],
    *,
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    asks: Callable[[Any], Asked],
    fold: Callable[[list[Any]], Any] = list,
    worth_keeping: Callable[[Any], bool] = lambda answer: True,
) -> Method:
    """A protocol's method whose answers are cached. Positional arguments have one entry per question; keywords hold for all.

    Args:
        kind: the first part of the store's key. Changing it, or `key`, forgets the answers of earlier versions.
        key: one question, with hashes instead of images, and the keywords -> the other parts of the store's key.
        encode: an answer -> the bytes in the store; `decode` reads them back.
        asks: what one answer costs. The first image of a question bears the cost, or `ELSEWHERE` where there is none.
        fold: the list of answers -> what the protocol returns.
        worth_keeping: whether an answer is stored; one that is not will be asked for again.
    """
    shape = inspect.signature(signature)

    @functools.wraps(signature)
    def method(self: Cached, *given: Sequence[Any], **settings: Any) -> Any:
        bound = shape.bind(self, *given, **settings)
        bound.apply_defaults()
        columns, settings = bound.args[1:], bound.kwargs
        with_images = "images" in shape.parameters
        hashes = [[content_hash(image) for image in _images(item)] for item in columns[0]] if with_images else columns[0]
        owners = [_owner(item, own) for item, own in zip(columns[0], hashes, strict=True)] if with_images else [ELSEWHERE] * len(hashes)
        keys = [self.key(kind, *key(*question, **settings)) for question in zip(hashes, *columns[1:], strict=True)]

        def compute(indices: Sequence[int]) -> list[bytes]:
            found = getattr(self.model, signature.__name__)(*([column[i] for i in indices] for column in columns), **settings)
            for i, answer in zip(indices, found, strict=True):
                add_cost(owners[i], _computed(asks(answer)))
            return [encode(answer) for answer in found]

        known = self.look_up(keys)
        for owner in (owner for owner, one in zip(owners, keys, strict=True) if one in known):
            add_cost(owner, Cost(cache_hits=1))
        answers = [decode(value) for value in self.answers(keys, known, compute, lambda value: worth_keeping(decode(value)))]
        for owner, answer in zip(owners, answers, strict=True):
            add_cost(owner, Cost(asked=asks(answer)))
        return fold(answers)

    return cast(Method, method)


# --- what a question is, and how its answer is written ------------------------------------------------------------------------


def content_hash(image: ImageLike) -> str:
    """The hash under which answers about an image are stored: that of its content, or of a PIL image's pixels."""
    return image.content if isinstance(image, Picture) else pixels_sha256(image)


def _images(item: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    if isinstance(item, Picture) or not isinstance(item, Sequence):  # the usual first: the other takes long to say no
        return [item]
    return item


def _owner(item: ImageLike | Sequence[ImageLike], hashes: Sequence[str]) -> str:
    """The image that bears a question's cost: the first one, by the hash that its result has."""
    if not hashes:
        return ELSEWHERE
    first = _images(item)[0]
    return first.sha256 if isinstance(first, Picture) else hashes[0]


def _computed(asked: Asked) -> Cost:
    return Cost(asked.mllm_calls, asked.prompt_tokens, asked.new_tokens, asked.encoder_forwards)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _floats(row: np.ndarray) -> bytes:
    return np.ascontiguousarray(row, "<f4").tobytes()


def _row(value: bytes) -> np.ndarray:
    return np.frombuffer(value, "<f4")


def _table(rows: list[np.ndarray]) -> np.ndarray:
    """(B, d) float32."""
    return np.stack(rows).astype(np.float32) if rows else np.zeros((0, 0), np.float32)


def _forward(answer: object) -> Asked:
    return Asked(encoder_forwards=1)


def _replied(reply: Reply) -> Asked:
    return Asked(1, int(reply.prompt_tokens), int(reply.new_tokens))


def _scores(value: bytes) -> Scores:
    log_likelihoods, tokens, prompt_tokens = json.loads(value)
    return Scores(tuple(log_likelihoods), tuple(tokens), prompt_tokens)


# --- the wrappers -------------------------------------------------------------------------------------------------------------


class CachedEncoder(Cached):
    """protocols.Encoder"""

    encode = cached(Encoder.encode, "image", lambda shown: shown, encode=_floats, decode=_row, asks=_forward, fold=_table)
    encode_text = cached(Encoder.encode_text, "text", lambda text: [text], encode=_floats, decode=_row, asks=_forward, fold=_table)

    @property
    def logit_scale(self) -> float:
        """Stored too, since asking the encoder may mean loading it."""
        keys = [self.key("logit_scale")]
        (value,) = self.answers(keys, self.look_up(keys), lambda _: [_json(float(self.model.logit_scale))])
        return json.loads(value)

    @property
    def has_text(self) -> bool:
        return reads_text(self.model)

    def known_images(self, hashes: Sequence[str]) -> set[str]:
        """The content hashes whose vectors are in the store, so that their files need not be opened."""
        keys = {self.key("image", sha256): sha256 for sha256 in hashes}
        found = self._cache.get(keys) if keys else {}
        self._found.put(found)
        return {keys[key] for key in found}


class CachedMLLM(Cached):
    """protocols.MLLM, and protocols.Chooser where the model can. An empty reply is a failure, so it is asked for again."""

    def __init__(self, model: MLLM, cache: Cache, *, at_once: int = 64) -> None:
        super().__init__(model, cache, at_once=at_once)

    generate = cached(
        MLLM.generate,
        "generate",
        lambda shown, prompt, system, max_new_tokens: [shown, prompt, system, max_new_tokens],
        encode=lambda reply: _json({"text": str(reply), "prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}),
        decode=lambda value: Reply(**json.loads(value)),
        asks=_replied,
        worth_keeping=lambda reply: bool(reply.strip()),
    )
    score = cached(
        MLLM.score,
        "score",
        lambda shown, prompt, texts, system: [shown, prompt, system, list(texts)],
        encode=lambda found: _json([list(map(float, found.log_likelihoods)), list(map(int, found.tokens)), int(found.prompt_tokens)]),
        decode=_scores,
        asks=lambda scores: Asked(1, int(scores.prompt_tokens)),  # scoring generates nothing
    )
    choose = cached(
        Chooser.choose,
        "choose",
        lambda shown, prompt, named, **settings: [shown, prompt, list(named), settings],
        encode=lambda choices: _json([[str(c.reply), c.reply.prompt_tokens, c.reply.new_tokens, dict(c.log_likelihoods)] for c in choices]),
        decode=lambda value: tuple(Choice(Reply(*reply), nats) for *reply, nats in json.loads(value)),
        asks=lambda choices: sum((_replied(choice.reply) for choice in choices), Asked()),
        worth_keeping=lambda choices: any(choice.reply.strip() for choice in choices),
    )


class CachedJointEncoder(Cached):
    """protocols.JointEncoder"""

    match = cached(
        JointEncoder.match,
        "match",
        lambda shown, text: [*shown, text],
        encode=_floats,
        decode=lambda value: _row(value)[0],
        asks=_forward,
        fold=lambda found: np.array(found, np.float32),
    )
