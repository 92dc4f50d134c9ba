"""protocols.Encoder on an open_clip module."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.runtime.loaders.base import pil
from fgvr.runtime.loaders.torch_model import TorchModel
from fgvr.runtime.sizes.towers import TEXTS

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")


class ClipEncoder(TorchModel):
    """One batch per call."""

    def __init__(self, fingerprint: str, logit_scale: float, module: Any, preprocess: Any, tokenizer: Any, lock: threading.Lock) -> None:
        super().__init__(fingerprint, module, lock)
        self.logit_scale = logit_scale
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._context = int(tokenizer.context_length)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        import torch

        if not images:
            return np.zeros((0, 0), np.float32)
        pixels = torch.stack([self._preprocess(pil(image)) for image in images])
        with torch.inference_mode():
            vectors = self._module.encode_image(pixels.to(self._weight.device, self._weight.dtype), normalize=False)
        return unit(vectors.float().cpu().numpy())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, 0), np.float32)
        with self._lock:
            parts = [list(self._fitting(text)) for text in texts]
            tokens = self._tokenizer([piece for pieces in parts for piece in pieces])
        vectors = np.concatenate([self._text_vectors(tokens[i : i + TEXTS]) for i in range(0, len(tokens), TEXTS)])
        ends = np.cumsum([len(pieces) for pieces in parts])
        return unit(np.stack([rows.mean(0) for rows in np.split(vectors, ends[:-1])]))

    @property
    def _weight(self) -> Any:
        """Any weight: its device and type are the module's."""
        return next(self._module.visual.parameters())

    def _text_vectors(self, tokens: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            vectors = self._module.encode_text(tokens.to(self._weight.device), normalize=False)
        return unit(vectors.float().cpu().numpy())

    def _fitting(self, text: str) -> Iterator[str]:
        """The text, or its sentences when it is longer than the context; a sentence that is still too long is split by words."""
        if self._fits(text):
            yield text
            return
        for sentence in filter(None, _SENTENCE.split(text.strip())):
            yield from self._by_words(sentence)

    def _by_words(self, text: str) -> Iterator[str]:
        words = text.split()
        if self._fits(text) or len(words) < 2:  # one word beyond the context: the tokenizer may cut it
            yield text
            return
        middle = len(words) // 2
        yield from self._by_words(" ".join(words[:middle]))
        yield from self._by_words(" ".join(words[middle:]))

    def _fits(self, text: str) -> bool:
        """Counted by the tokenizer itself, start and end marks included."""
        inner = getattr(self._tokenizer, "tokenizer", None)
        cleaned = self._tokenizer.clean_fn(text)
        if inner is not None:
            return len(inner(cleaned, truncation=False, verbose=False).input_ids) <= self._context
        return len(self._tokenizer.encode(cleaned)) + 2 <= self._context


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
