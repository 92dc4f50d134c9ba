"""Models that never answer the same question twice.

What a call misses is asked of the wrapped model in one call (an MLLM: up to `AT_ONCE` in one), without repeats, and remembered in one
transaction; results keep the order of the input. Tallied is what was computed, and what was asked. Wrappers hold no model of their own:
when all is remembered, none is touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fgvr.protocols import MLLM, Cache, Chooser, Encoder, JointEncoder, reads_text
from fgvr.store import tally
from fgvr.store.cache import MemoryCache
from fgvr.types import Asked, Choice, Picture, Reply, Scores
from fgvr.utils.files import canonical_json, sha256_bytes
from fgvr.utils.images import pixels_sha256

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike


_LOOKED = Asked(encoder_forwards=1)
AT_ONCE = 64
"""Questions to an MLLM, whose answers a crash may cost; that many fill its batches."""


class RememberingEncoder:
    """An `Encoder` whose vectors are remembered by picture or text."""

    def __init__(self, encoder: Encoder, cache: Cache) -> None:
        self._encoder, self._cache = encoder, cache
        self._ahead = MemoryCache(max_bytes=1 << 20)  # what `remembered` has found will soon be asked for

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def logit_scale(self) -> float:
        """Remembered too, since asking the encoder may mean loading it."""
        key = _key("logit_scale", self.fingerprint)
        (value,) = _remembered(self._cache, [key], lambda _: [_to_json(float(self._encoder.logit_scale))])
        return json.loads(value)

    @property
    def has_text(self) -> bool:
        return reads_text(self._encoder)

    def remembered(self, hashes: Sequence[str]) -> set[str]:
        """Those content hashes whose vectors are known, so that nobody need look at the pictures for them."""
        if not hashes:
            return set()
        keys = {_key("image", self.fingerprint, sha256): sha256 for sha256 in hashes}
        found = self._cache.get(keys)
        self._ahead.put(found)
        return {keys[key] for key in found}

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        names = [content_hash(image) for image in images]
        owners = _owners([[image] for image in images], [[name] for name in names])

        def compute(indices: list[int]) -> list[bytes]:
            rows = self._encoder.encode([images[i] for i in indices])
            for i in indices:
                tally.add(owners[i], encoder_forwards=1)
            return _rows_to_bytes(rows)

        vectors = self._vectors("image", names, compute, of=owners)
        for owner in owners:
            tally.add(owner, asked=_LOOKED)
        return vectors

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        def compute(indices: list[int]) -> list[bytes]:
            rows = self._encoder.encode_text([texts[i] for i in indices])
            tally.add(encoder_forwards=len(indices))
            return _rows_to_bytes(rows)

        return self._vectors("text", texts, compute)

    def _vectors(
        self, kind: str, names: Sequence[str], compute: Callable[[list[int]], list[bytes]], of: Sequence[str] | None = None
    ) -> np.ndarray:
        """(B, d) float32."""
        if not names:
            return np.zeros((0, 0), np.float32)
        fingerprint = self.fingerprint
        keys = [_key(kind, fingerprint, name) for name in names]
        values = _remembered(self._cache, keys, compute, known=self._ahead.get(keys), of=of)
        return np.stack([np.frombuffer(value, "<f4") for value in values]).astype(np.float32)


class RememberingMLLM:
    """An `MLLM` whose replies and scores are remembered by pictures, words and decoding parameters.

    An empty reply is not remembered: it is a failure to be tried again. Work on a prompt with several pictures is tallied to the first.
    Tokens of scored continuations count as new tokens.
    """

    def __init__(self, mllm: MLLM, cache: Cache) -> None:
        self._mllm, self._cache = mllm, cache

    @property
    def fingerprint(self) -> str:
        return self._mllm.fingerprint

    def generate(
        self, images: Sequence[ImageLike | Sequence[ImageLike]], prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128
    ) -> list[Reply]:
        shown = [_hashes(item) for item in images]
        owners = _owners([_listed(item) for item in images], shown)
        fingerprint = self.fingerprint
        keys = [
            _key("generate", fingerprint, pictures, prompt, system, max_new_tokens) for pictures, prompt in zip(shown, prompts, strict=True)
        ]

        def compute(indices: list[int]) -> list[bytes]:
            replies = self._mllm.generate(
                [images[i] for i in indices], [prompts[i] for i in indices], system=system, max_new_tokens=max_new_tokens
            )
            for i, reply in zip(indices, replies, strict=True):
                _tally_mllm(owners[i], reply.prompt_tokens, reply.new_tokens)
            return [_to_json({"text": str(r), "prompt_tokens": r.prompt_tokens, "new_tokens": r.new_tokens}) for r in replies]

        written: Callable[[bytes], object] = lambda value: json.loads(value)["text"].strip()  # noqa: E731
        values = _remembered(self._cache, keys, compute, keep=written, at_once=AT_ONCE, of=owners)
        replies = [Reply(**json.loads(value)) for value in values]
        for owner, reply in zip(owners, replies, strict=True):
            tally.add(owner, asked=Asked(1, reply.prompt_tokens, reply.new_tokens))
        return replies

    def score(
        self,
        images: Sequence[ImageLike | Sequence[ImageLike]],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        *,
        system: str = "",
    ) -> list[Scores]:
        shown = [_hashes(item) for item in images]
        owners = _owners([_listed(item) for item in images], shown)
        fingerprint = self.fingerprint
        keys = [
            _key("score", fingerprint, pictures, prompt, system, list(texts))
            for pictures, prompt, texts in zip(shown, prompts, continuations, strict=True)
        ]

        def compute(indices: list[int]) -> list[bytes]:
            scores = self._mllm.score(
                [images[i] for i in indices], [prompts[i] for i in indices], [continuations[i] for i in indices], system=system
            )
            for i, score in zip(indices, scores, strict=True):
                _tally_mllm(owners[i], score.prompt_tokens, 0)  # scoring generates nothing
            return [_to_json([list(map(float, s.log_likelihoods)), list(map(int, s.tokens)), int(s.prompt_tokens)]) for s in scores]

        values = _remembered(self._cache, keys, compute, at_once=AT_ONCE, of=owners)
        scores = [_scores(*json.loads(value)) for value in values]
        for owner, score in zip(owners, scores, strict=True):
            tally.add(owner, asked=Asked(1, score.prompt_tokens))
        return scores

    def choose(
        self,
        images: Sequence[ImageLike | Sequence[ImageLike]],
        prompts: Sequence[str],
        options: Sequence[Sequence[str]],
        *,
        marker: str,
        system: str = "",
        max_new_tokens: int = 128,
        votes: int = 1,
    ) -> list[tuple[Choice, ...]]:
        """protocols.Chooser; replies are remembered together, unless all of them are empty."""
        shown = [_hashes(item) for item in images]
        owners = _owners([_listed(item) for item in images], shown)
        settings = {"marker": marker, "system": system, "max_new_tokens": max_new_tokens, "votes": votes}
        keys = [
            _key("choose", self.fingerprint, pictures, prompt, list(named), settings)
            for pictures, prompt, named in zip(shown, prompts, options, strict=True)
        ]

        def compute(indices: list[int]) -> list[bytes]:
            found = self._chooser.choose(
                [images[i] for i in indices],
                [prompts[i] for i in indices],
                [options[i] for i in indices],
                marker=marker,
                system=system,
                max_new_tokens=max_new_tokens,
                votes=votes,
            )
            for i, reply in ((i, choice.reply) for i, choices in zip(indices, found, strict=True) for choice in choices):
                _tally_mllm(owners[i], reply.prompt_tokens, reply.new_tokens)
            return [_to_json([_choice_row(choice) for choice in choices]) for choices in found]

        written: Callable[[bytes], object] = lambda value: any(row[0].strip() for row in json.loads(value))  # noqa: E731
        values = _remembered(self._cache, keys, compute, keep=written, at_once=AT_ONCE, of=owners)
        found = [tuple(Choice(Reply(*row[:3]), row[3]) for row in json.loads(value)) for value in values]
        for owner, choices in zip(owners, found, strict=True):
            for choice in choices:
                tally.add(owner, asked=Asked(1, choice.reply.prompt_tokens, choice.reply.new_tokens))
        return found

    @property
    def _chooser(self) -> Chooser:
        return self._mllm  # type: ignore[return-value]


class RememberingJointEncoder:
    """A `JointEncoder` whose matches are remembered by picture and text."""

    def __init__(self, joint: JointEncoder, cache: Cache) -> None:
        self._joint, self._cache = joint, cache

    @property
    def fingerprint(self) -> str:
        return self._joint.fingerprint

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        names = [content_hash(image) for image in images]
        owners = _owners([[image] for image in images], [[name] for name in names])
        fingerprint = self.fingerprint
        keys = [_key("match", fingerprint, name, text) for name, text in zip(names, texts, strict=True)]

        def compute(indices: list[int]) -> list[bytes]:
            matches = self._joint.match([images[i] for i in indices], [texts[i] for i in indices])
            for i in indices:
                tally.add(owners[i], encoder_forwards=1)
            return _rows_to_bytes(matches)

        values = _remembered(self._cache, keys, compute, of=owners)
        for owner in owners:
            tally.add(owner, asked=_LOOKED)
        return np.array([np.frombuffer(value, "<f4")[0] for value in values], np.float32)


def content_hash(image: ImageLike) -> str:
    """What answers about a picture are remembered under: the hash of its content, or that of a PIL image's pixels."""
    return image.content if isinstance(image, Picture) else pixels_sha256(image)


def _remembered(
    cache: Cache,
    keys: Sequence[str],
    compute: Callable[[list[int]], list[bytes]],
    *,
    keep: Callable[[bytes], object] = lambda value: True,
    known: Mapping[str, bytes] | None = None,
    at_once: int | None = None,
    of: Sequence[str] | None = None,
) -> list[bytes]:
    """One value per key. `compute` is called with the first index of each key the cache lacks; what `keep` refuses is returned but not
    remembered. `known`: what of the cache was looked up before. `at_once`: most indices of one call, and of one transaction. `of`: the
    pictures to which hits are tallied."""
    known = dict(known or {})
    known.update(cache.get(unseen) if (unseen := [key for key in dict.fromkeys(keys) if key not in known]) else {})
    if of is not None:
        for name in (name for key, name in zip(keys, of, strict=True) if key in known):
            tally.add(name, cache_hits=1)
    missing: Mapping[str, int] = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
    indices = sorted(missing.values())
    step = at_once or max(1, len(indices))
    for start in range(0, len(indices), step):
        some = indices[start : start + step]
        fresh = {keys[i]: value for i, value in zip(some, compute(some), strict=True)}
        cache.put({key: value for key, value in fresh.items() if keep(value)})
        known.update(fresh)
    return [known[key] for key in keys]


def _key(kind: str, fingerprint: str, *parts: object) -> str:
    return sha256_bytes(canonical_json([kind, fingerprint, *parts]).encode("utf-8", "backslashreplace"))


def _hashes(item: ImageLike | Sequence[ImageLike]) -> list[str]:
    return [content_hash(image) for image in _listed(item)]


def _listed(item: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    if isinstance(item, Picture) or not isinstance(item, Sequence):  # the usual first: the other takes long to say no
        return [item]
    return item


def _owners(images: Sequence[Sequence[ImageLike]], hashes: Sequence[Sequence[str]]) -> list[str]:
    """To which picture a prompt's work and hits are tallied: the first, by the hash that its result has."""

    def owner(image: ImageLike, known: str) -> str:
        return image.sha256 if isinstance(image, Picture) else known

    return [owner(some[0], known[0]) if known else tally.ELSEWHERE for some, known in zip(images, hashes, strict=True)]


def _tally_mllm(owner: str, prompt_tokens: int, new_tokens: int) -> None:
    tally.add(owner, mllm_calls=1, prompt_tokens=int(prompt_tokens), new_tokens=int(new_tokens))


def _rows_to_bytes(rows: np.ndarray) -> list[bytes]:
    return [np.ascontiguousarray(row, "<f4").tobytes() for row in rows]


def _to_json(value: object) -> bytes:
    return json.dumps(value).encode()


def _choice_row(choice: Choice) -> list[object]:
    return [str(choice.reply), choice.reply.prompt_tokens, choice.reply.new_tokens, dict(choice.log_likelihoods)]


def _scores(log_likelihoods: list[float], tokens: list[int], prompt_tokens: int) -> Scores:
    return Scores(tuple(log_likelihoods), tuple(tokens), prompt_tokens)
