"""protocols.Encoder on a timm module, images only."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.errors import ConfigError
from fgvr.runtime.loaders.base import pil
from fgvr.runtime.loaders.clip_encoder import unit
from fgvr.runtime.loaders.torch_model import TorchModel
from fgvr.runtime.sizes.timm import LOGIT_SCALE

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike


class TimmEncoder(TorchModel):
    """One batch per call."""

    has_text = False
    logit_scale = LOGIT_SCALE

    def __init__(self, fingerprint: str, module: Any, transform: Any) -> None:
        super().__init__(fingerprint, module, threading.Lock())
        self._transform = transform

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        import torch

        if not images:
            return np.zeros((0, 0), np.float32)
        pixels = torch.stack([self._transform(pil(image)) for image in images])
        weight = next(self._module.parameters())
        with torch.inference_mode():
            vectors = self._module(pixels.to(weight.device, weight.dtype))
        return unit(vectors.float().cpu().numpy())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        raise ConfigError("this encoder reads no text (models/encoder is an image encoder of timm): choose one with a text side")
