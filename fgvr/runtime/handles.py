"""Models as the agents see them: objects with the protocols' methods that lease for each call and keep nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fgvr.runtime.pool import ModelPool
from fgvr.types import Choice, ModelSpec, Reply, Scores

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike


class Handle:
    """Registers the spec under its role; loads nothing until the first call."""

    def __init__(self, pool: ModelPool, spec: ModelSpec) -> None:
        self._pool, self.spec = pool, spec
        self._fingerprint: str | None = None
        pool.register(spec)

    @property
    def fingerprint(self) -> str:
        """From the files alone."""
        if self._fingerprint is None:
            self._fingerprint = self._pool.loader(self.spec).fingerprint(self.spec)
        return self._fingerprint

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.key}, {self.spec.source})"


class PooledEncoder(Handle):
    """protocols.Encoder"""

    @property
    def logit_scale(self) -> float:
        """From the file alone, so that asking (as `isinstance(handle, Encoder)` does) loads nothing."""
        return self._pool.loader(self.spec).logit_scale(self.spec)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        with self._pool.lease(self.spec) as encoder:
            return encoder.encode(images)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        with self._pool.lease(self.spec) as encoder:
            return encoder.encode_text(texts)


class PooledMLLM(Handle):
    """protocols.MLLM"""

    def generate(
        self, images: Sequence[ImageLike | Sequence[ImageLike]], prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128
    ) -> list[Reply]:
        with self._pool.lease(self.spec) as mllm:
            return mllm.generate(images, prompts, system=system, max_new_tokens=max_new_tokens)

    def score(
        self,
        images: Sequence[ImageLike | Sequence[ImageLike]],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        *,
        system: str = "",
    ) -> list[Scores]:
        with self._pool.lease(self.spec) as mllm:
            return mllm.score(images, prompts, continuations, system=system)

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
        """protocols.Chooser, where the model is behind an engine."""
        with self._pool.lease(self.spec) as mllm:
            return mllm.choose(images, prompts, options, marker=marker, system=system, max_new_tokens=max_new_tokens, votes=votes)


class PooledJoint(Handle):
    """protocols.JointEncoder"""

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        with self._pool.lease(self.spec) as joint:
            return joint.match(images, texts)
