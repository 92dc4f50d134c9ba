"""protocols.JointEncoder on a BLIP module."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.runtime.loaders.base import pil
from fgvr.runtime.loaders.torch_model import TorchModel
from fgvr.types import Picture

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike


class BlipMatcher(TorchModel):
    """One batch per call. The picture goes through the vision tower once, however many texts it meets; every text is read while looking at
    its picture, and the matching head gives the probability."""

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
