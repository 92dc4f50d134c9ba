"""Models without weights: deterministic answers from what they are shown, in microseconds, with declared sizes.

`models/encoder=fake models/mllm=fake` runs the whole command line with them. A size in the source counts: `ModelSpec("mllm", "fake",
"big 16GiB")` weighs 16 GiB on the ledger (and on a simulated device), nothing in memory. They recognise nothing and their reports say so.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.runtime.budget import parse_bytes
from fgvr.runtime.conversation import Answer, Conversation, Conversing, GrowingAnswer, Token, Watch
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders.base import Loader, pil
from fgvr.types import ModelSpec, Picture, Scores

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike
    from fgvr.runtime.conversation import Images

DIMENSIONS = 64
_DEFAULT_BYTES = {"mllm": 64 << 20, "encoder": 8 << 20, "joint": 4 << 20}
_LINES = re.compile(r"^([A-Z])\. ([^:\n]+)", re.MULTILINE)
_COLOURS = ("red", "blue", "black", "white", "brown", "yellow", "green", "grey")
_PARTS = ("crown", "back", "belly", "breast", "beak", "wing", "tail", "legs")


class FakeLoader(Loader):
    converses = True

    def __init__(self, *, work: int = 1 << 20) -> None:
        self.kinds: dict[str, type[_Fake]] = {"encoder": FakeEncoder, "mllm": FakeMLLM, "joint": FakeJoint}
        self._work = work

    def estimate(self, spec: ModelSpec) -> int:
        return parse_bytes(spec.source.split()[-1]) or _DEFAULT_BYTES[spec.role]

    def work_bytes(self, spec: ModelSpec) -> int:
        return self._work

    def fingerprint(self, spec: ModelSpec) -> str:
        return f"fake-{_digest(repr(spec.identity))[:12]}"

    def logit_scale(self, spec: ModelSpec) -> float:
        return FakeEncoder.logit_scale

    def load(self, spec: ModelSpec, device: Device) -> _Fake:
        return self.kinds[spec.role](self.fingerprint(spec), self.estimate(spec), self._work, device)


class _Fake:
    """Size and simulated memory."""

    movable = None

    def __init__(self, fingerprint: str, nbytes: int, work: int, device: Device) -> None:
        self.fingerprint, self.nbytes = fingerprint, nbytes
        self.weights: Any = device.allocate(nbytes)
        self._allocate = device.allocate
        self._work_bytes = work

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Holds working memory."""
        work = self._allocate(self._work_bytes)
        yield
        del work


class FakeEncoder(_Fake):
    """Images by their coarse colours, texts by their words: alike things get alike vectors."""

    logit_scale = 100.0

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        with self._working():
            pixels = [np.asarray(pil(image).convert("RGB").resize((4, 4)), np.float32).ravel() / 255 for image in images]
            return _unit(np.array([(p - p.mean()) @ _projection(p.size) + 1e-3 for p in pixels], np.float32))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        with self._working():
            vectors = [np.sum([_vector(word) for word in re.findall(r"\w+", t.lower()) or [""]], axis=0) for t in texts]
            return _unit(np.array(vectors, np.float32))


class FakeMLLM(_Fake, Conversing):
    """Writes a description, or picks one of the candidates it is offered; both by hash of image and prompt."""

    seconds = 0.0  # of one step of `converse`
    tokens_per_item = 512

    def lengths(self, images: Images, prompts: Sequence[str], system: str) -> list[int]:
        """A token is a word; pictures take none."""
        return [len(prompt.split()) for prompt in prompts]

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        scores = []
        with self._working():
            for image, prompt, texts in zip(images, prompts, continuations, strict=True):
                seen = f"{image_key(image)} {prompt}"
                tokens = tuple(len(text.split()) + 1 for text in texts)
                likelihoods = tuple(-n * (0.5 + _share(f"{seen} {text}")) for n, text in zip(tokens, texts, strict=True))
                scores.append(Scores(likelihoods, tokens, len(prompt.split())))
        return scores

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        """A token is a word; a temperature shuffles them by the seed. `seconds` is what each step of a batch takes."""
        texts = [self._words(ask) for ask in asks]
        rows = [
            GrowingAnswer(ask.sampling, lambda ids, words=words: " ".join(words[i] for i in ids))
            for ask, words in zip(asks, texts, strict=True)
        ]
        with self._working():
            for step in range(max((ask.sampling.max_new_tokens for ask in asks), default=0)):
                going = [i for i, row in enumerate(rows) if row.finish is None]
                time.sleep(self.seconds if going else 0)
                for i in going:
                    word = texts[i][step] if step < len(texts[i]) else ""
                    rows[i].take(step, _measured(word, asks[i].sampling.top_logprobs), is_end=not word)
                    rows[i].show(watch, i)
        return [row.answer(len(ask.text.split())) for row, ask in zip(rows, asks, strict=True)]

    def _words(self, ask: Conversation) -> list[str]:
        words = self._answer(ask).split()
        if ask.sampling.temperature:
            seed = time.time_ns() if ask.sampling.seed is None else ask.sampling.seed % 2**32
            words = [str(word) for word in np.random.default_rng(seed).permutation(words)]
        return words

    def _answer(self, ask: Conversation) -> str:
        prompt = ask.text
        seen = f"{image_key(ask.shown)} {prompt}"
        if offered := _LINES.findall(prompt):
            letter, name = offered[int(_digest(seen), 16) % len(offered)]
            if "first say" in prompt.lower():
                return f"It is {_describe(seen)}. Answer: {letter}"
            return name.strip() if "answer with its name" in prompt.lower() else letter
        return f"A bird with {_describe(seen)}."


def _measured(word: str, most: int | None) -> Token | None:
    if most is None:
        return None
    logprob = -_share(word)
    return Token(word, logprob, tuple((f"{word}{n or ''}", logprob - n) for n in range(most)))


class FakeJoint(_Fake):
    """A probability by hash of image and text."""

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        with self._working():
            return np.array([_share(f"{image_key(i)} {t}") for i, t in zip(images, texts, strict=True)], np.float32)


def image_key(image: ImageLike | Sequence[ImageLike]) -> str:
    """Content hash of one image or a sequence of them."""
    if isinstance(image, Picture):
        return image.sha256
    if isinstance(image, Sequence):
        return " ".join(image_key(part) for part in image)
    return hashlib.sha256(image.tobytes()).hexdigest()


def _describe(seen: str) -> str:
    digest = bytes.fromhex(_digest(seen))
    return ", ".join(f"{_COLOURS[digest[i] % 8]} {_PARTS[i]}" for i in range(4))


def _projection(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((size, DIMENSIONS)).astype(np.float32)


def _vector(word: str) -> np.ndarray:
    return np.random.default_rng(int(_digest(word)[:8], 16)).standard_normal(DIMENSIONS)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) if len(vectors) else np.zeros((0, DIMENSIONS), np.float32)


def _share(text: str) -> float:
    return int(_digest(text)[:8], 16) / 0xFFFFFFFF


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


LOADER = FakeLoader()
