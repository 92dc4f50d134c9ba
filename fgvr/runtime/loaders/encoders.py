"""protocols.Encoder and protocols.JointEncoder on PyTorch modules."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.errors import ConfigError
from fgvr.runtime.loaders.base import pil
from fgvr.runtime.loaders.tensors import TorchModel
from fgvr.runtime.sizes.towers import TEXTS
from fgvr.types import Picture

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")


class ClipEncoder(TorchModel):
    """open_clip's. One batch per call."""

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


class TimmEncoder(TorchModel):
    """timm's, images only. One batch per call."""

    has_text = False

    def __init__(self, fingerprint: str, logit_scale: float, module: Any, transform: Any, *, at_once: int | None = None) -> None:
        """`at_once`: images in one forward pass, so that a layer's values stay in the processor's cache; None = the whole batch."""
        super().__init__(fingerprint, module, threading.Lock())
        self.logit_scale = logit_scale
        self._transform, self._at_once = transform, at_once

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        import torch

        if not images:
            return np.zeros((0, 0), np.float32)
        weight, step = next(self._module.parameters()), self._at_once or len(images)
        vectors = []
        # Pillow resizes without the interpreter's lock: the next images are prepared while the module computes.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads, torch.inference_mode():
            prepared = threads.map(lambda image: self._transform(pil(image)), images)
            while part := list(islice(prepared, step)):
                pixels = torch.stack(part).to(weight.device, weight.dtype, memory_format=torch.channels_last)
                vectors.append(self._module(pixels).float().cpu())
        return unit(torch.cat(vectors).numpy())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        raise ConfigError("this encoder reads no text (models/encoder is an image encoder of timm): choose one with a text side")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


class BlipMatcher(TorchModel):
    """BLIP's. One batch per call. The picture goes through the vision tower once, however many texts it meets; every text is read while
    looking at its picture, and the matching head gives the probability."""

    def __init__(self, fingerprint: str, module: Any, processor: Any, lock: threading.Lock) -> None:
        super().__init__(fingerprint, module, lock)
        self._images, self._tokenizer = processor.image_processor, processor.tokenizer
        self._context = int(module.config.text_config.max_position_embeddings)

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        """(B,) float32: probability that image i shows text i. One image given many times is looked at once.

        A text longer than the context is read in equal parts and their probabilities are averaged.
        """
        import torch

        if not texts:
            return np.zeros(0, np.float32)
        distinct, numbers = _distinct(images)
        with self._lock:
            parts = [self._parts(text) for text in texts]
        rows = [torch.tensor(part) for pieces in parts for part in pieces]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        picture = torch.tensor([number for number, pieces in zip(numbers, parts, strict=True) for _ in pieces])
        device = self._module.device
        with torch.inference_mode():
            seen = self._look(distinct)[picture.to(device)]
            read = self._module.text_encoder(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
            ).last_hidden_state
            matched = self._module.itm_head(read[:, 0]).float().softmax(-1)[:, 1].cpu().numpy()
        ends = np.cumsum([len(pieces) for pieces in parts])
        return np.array([part.mean() for part in np.split(matched, ends[:-1])], np.float32)

    def _look(self, images: Sequence[Any]) -> Any:
        """Tokens of the vision tower, (images, tokens, width). Pictures are prepared one by one: whole, each takes 6 bytes a pixel."""
        import torch

        pixels = torch.cat([self._images(images=[image], return_tensors="pt")["pixel_values"] for image in images])
        return self._module.vision_model(pixel_values=pixels.to(self._module.device, self._module.dtype)).last_hidden_state

    def _parts(self, text: str) -> list[list[int]]:
        """Ids with their marks, in as few equal parts as the context asks for."""
        words = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        room = self._context - 2
        pieces = np.array_split(words, max(1, -(-len(words) // room)))
        return [[self._tokenizer.cls_token_id, *piece.astype(int).tolist(), self._tokenizer.sep_token_id] for piece in pieces]


def _distinct(images: Sequence[ImageLike]) -> tuple[list[Any], list[int]]:
    """Each image once, as PIL, and which of them stands at each place. Pictures are told apart by content, PIL images by identity."""
    places: dict[object, int] = {}
    found: list[Any] = []
    numbers = []
    for image in images:
        key = (image.sha256 or id(image.image)) if isinstance(image, Picture) else id(image)
        if key not in places:
            places[key] = len(found)
            found.append(pil(image))
        numbers.append(places[key])
    return found, numbers
