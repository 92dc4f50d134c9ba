"""The seams: what an agent may ask of a model, and what the pipeline may ask of an agent. Anything with these methods will do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np

from fgvr.types import Choice, Decision, FastResult, Picture, Reply, Scores, SlowResult

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = Picture | Image


T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class Encoder(Protocol):
    """A dual image-text encoder (CLIP)."""

    @property
    def fingerprint(self) -> str:
        """Identity of weights, dtype and preprocessing."""
        ...

    @property
    def logit_scale(self) -> float:
        """The encoder's own inverse temperature (CLIP: 100)."""
        ...

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        """(B, d) float32, unit rows."""
        ...

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """(B, d) float32, unit rows. A text longer than the context is split in sentences and their vectors averaged."""
        ...


def reads_text(encoder: Encoder) -> bool:
    """Whether it has a text side. One without says so by a false `has_text`; whoever needs words of it does without, and says so."""
    return bool(getattr(encoder, "has_text", True))


@runtime_checkable
class Measured(Protocol):
    """An MLLM that can say how long its prompts will be, before anything is tokenised: estimates that order and cap batches."""

    tokens_per_item: int
    """What working memory was planned with, images included."""

    def lengths(self, images: Sequence[ImageLike | Sequence[ImageLike]], prompts: Sequence[str], system: str) -> list[int]:
        """Tokens of each prompt with its images, about."""
        ...


@runtime_checkable
class MLLM(Protocol):
    """A multimodal large language model; one user turn: the image(s), then the text."""

    @property
    def fingerprint(self) -> str: ...

    def generate(
        self, images: Sequence[ImageLike | Sequence[ImageLike]], prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128
    ) -> list[Reply]:
        """Greedy answers, one per prompt. Each prompt has its own image, or a sequence of images."""
        ...

    def score(
        self,
        images: Sequence[ImageLike | Sequence[ImageLike]],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        *,
        system: str = "",
    ) -> list[Scores]:
        """Log-likelihood of each continuation as the whole answer to its prompt (end of turn included)."""
        ...


class Chooser(Protocol):
    """An MLLM whose choice is read from its replies: one that samples, or one behind an engine that only generates."""

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
        """Per prompt `votes` replies: one is greedy, several are sampled. `options`: what may be named, after `marker`."""
        ...


@runtime_checkable
class JointEncoder(Protocol):
    """An image-text matcher (BLIP)."""

    @property
    def fingerprint(self) -> str: ...

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        """(B,) probability that image i shows text i."""
        ...


class FastThinker(Protocol):
    def __call__(self, pictures: Sequence[Picture]) -> list[FastResult]: ...


@runtime_checkable
class Trigger(Protocol):
    def __call__(self, results: Sequence[FastResult]) -> list[Decision]: ...


class SlowThinker(Protocol):
    def __call__(self, pictures: Sequence[Picture], results: Sequence[FastResult]) -> list[SlowResult]: ...


class Each(Protocol):
    """How the batches of a loop are worked through: as `map`, or several at once by others. Results keep the order of the items."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]: ...


class Cache(Protocol):
    """Content-addressed memory. `put` is atomic: after a crash all of one call's entries are there, or none."""

    def get(self, keys: Iterable[str]) -> Mapping[str, bytes]: ...

    def put(self, entries: Mapping[str, bytes]) -> None: ...
