"""protocols.Encoder on a timm module, images only."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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

    def __init__(self, fingerprint: str, module: Any, transform: Any, *, at_once: int | None = None) -> None:
        """`at_once`: images in one forward pass, so that a layer's values stay in the processor's cache; None = the whole batch."""
        super().__init__(fingerprint, module, threading.Lock())
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
