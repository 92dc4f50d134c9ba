"""Working memory as measured: one probe of a model's widest batch per machine, kept by fingerprint and device below the home.

A probe measures one item, half a batch and a whole one; other sizes lie on the lines through them. One item by itself would mislead: it has
no padding, and preparing its picture may be its widest moment. Until there is a probe, the loader's estimate holds (`Loader.work_bytes`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fgvr.errors import FgvrError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders.base import Loader
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.files import read_json, write_json

log = logging.getLogger(__name__)

FOLDER = "probes"
WORDS = "a bird with a red crown and a black wing "
CANDIDATES, NEW_TOKENS = 5, 256  # of a shortlist; the longest that is scored or written
_SPARE = 4  # tokens of a prompt that are left for its answer: a batch of one has room for no more
_TEXTS = 64  # an encoder's texts at once
_PIXELS = 1024 * 1024  # of a picture: more than most processors keep
_SHAPES = (1.0, 4 / 3)  # width by height: some processors cut a square into the most tiles, some a picture


@dataclass(frozen=True, slots=True)
class Probes:
    """What was measured on this machine. `folder`: where it is kept; None: nowhere."""

    folder: Path | None = None

    def work(self, loader: Loader, spec: ModelSpec, device: str) -> int | None:
        """Bytes of one batch of `spec.batch_size`; None until a probe has measured them."""
        if self.folder is None or not self.folder.is_dir():
            return None
        try:
            return on_lines({int(size): int(value) for size, value in read_json(self._path(loader, spec, device)).items()}, spec.batch_size)
        except (
            FgvrError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            ArithmeticError,
        ):  # never probed, or by hand; the next probe writes it anew
            return None

    def keep(self, loader: Loader, spec: ModelSpec, device: str, measured: dict[int, int]) -> None:
        if self.folder is not None:
            write_json(self._path(loader, spec, device), {str(size): value for size, value in measured.items()})

    def apply(self, found: Footprint, loader: Loader, spec: ModelSpec, device: str) -> Footprint:
        """The footprint with what was measured in the place of its estimate."""
        work = self.work(loader, spec, device)
        return found if work is None else replace(found, work=(PlanPart("measured on this machine", work),), measured=True)

    def _path(self, loader: Loader, spec: ModelSpec, device: str) -> Path:
        assert self.folder is not None
        pixels = loader.most_pixels(spec)
        larger = f"-{pixels}px" if pixels > _PIXELS else ""
        return self.folder / f"{loader.fingerprint(spec)}-{device.partition(':')[0]}{larger}.json"


UNPROBED = Probes()


def on_lines(measured: Mapping[int, int], batch: int) -> int:
    """Bytes of a batch, between two measured ones or beyond the last two of three. Raises ValueError where nothing was measured."""
    sizes, most = sorted(measured), max(measured)
    if batch >= most and len(sizes) < 3:
        return round(measured[most] * batch / most)  # at most: a batch of one tells too little for a line
    low, high = next((pair for pair in pairwise(sizes) if pair[1] >= batch), (sizes[-2], sizes[-1]))
    return round(measured[low] + (measured[high] - measured[low]) * (batch - low) / (high - low))


def take(model: Any, spec: ModelSpec, device: Device, most_pixels: int = 0) -> dict[int, int]:
    """Bytes at the widest moment of a batch of one, of half of `spec.batch_size`, and of all. Nothing else may compute meanwhile.

    Args: most_pixels: of the largest picture that the model sees in full.
    """
    from fgvr.utils.images import REDUCE_ABOVE  # with NumPy and Pillow, which a plan does without

    widest = {"encoder": _encoder_calls, "mllm": _mllm_calls, "joint": _joint_calls}[spec.role]
    pixels = min(max(_PIXELS, most_pixels), REDUCE_ABOVE)
    shown = [_picture(pixels, shape) for shape in (_SHAPES if spec.role == "mllm" else _SHAPES[:1])]
    for call in widest(model, shown[:1]):  # libraries make what they make once
        call()
    picture = max(shown, key=lambda one: max(device.measure(call) for call in widest(model, [one]))) if len(shown) > 1 else shown[0]
    measured: dict[int, int] = {}
    for size in sorted({1, (spec.batch_size + 1) // 2, spec.batch_size}):
        measured[size] = max([*measured.values(), *(device.measure(call) for call in widest(model, [picture.copy() for _ in range(size)]))])
    log.info("%s: measured working memory by batch size: %s", spec.key, measured)
    return measured


def _picture(pixels: int, shape: float) -> Any:
    import numpy as np
    from PIL import Image

    height = math.ceil(math.sqrt(pixels / shape))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, math.ceil(pixels / height), 3), np.uint8))


def _encoder_calls(model: Any, pictures: Sequence[Any]) -> Iterator[Callable[[], Any]]:
    yield lambda: model.encode(pictures)
    if getattr(model, "has_text", True):
        yield lambda: model.encode_text([WORDS] * _TEXTS)


def _joint_calls(model: Any, pictures: Sequence[Any]) -> Iterator[Callable[[], Any]]:
    yield lambda: model.match(pictures, [WORDS * 4] * len(pictures))


def _mllm_calls(model: Any, pictures: Sequence[Any]) -> Iterator[Callable[[], Any]]:
    """Reading prompts as long as the plan reckons with, then scoring short and long continuations of a shortlist."""
    size, repeats = len(pictures), _repeats(model, pictures[0])
    prompts = [WORDS * repeats[0]] * size

    def scored(text: str) -> Callable[[], Any]:
        return lambda: model.score(pictures, prompts, [[text] * CANDIDATES] * size)

    yield lambda: model.generate(pictures, prompts, max_new_tokens=2)
    yield scored(WORDS)
    yield scored(WORDS * repeats[1])


def _repeats(model: Any, picture: Any) -> Sequence[int]:
    """How often the words fill a prompt, and the longest continuation: counted by the model's own tokenizer."""
    few, more = (model.score([picture], [WORDS * count], [[WORDS]])[0].prompt_tokens for count in (4, 8))
    each = max(1.0, (more - few) / 4)
    room = getattr(model, "tokens_per_item", more) - few - _SPARE
    return max(1, 4 + int(room / each)), max(1, round(NEW_TOKENS / each))
