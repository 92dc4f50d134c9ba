"""What a model brings with it besides weights, ahead of its load: so that a process can be measured with all of that and without weights.

A loader that is not named here imports its libraries itself when it loads; they then count as part of its first model.
"""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fgvr.runtime.loaders.base import find_loader
from fgvr.types import ModelSpec

_NEEDED = {
    "clip": ("open_clip.transform",),
    "qwen": ("transformers:AutoProcessor", "transformers:Qwen2_5_VLForConditionalGeneration", "transformers:Qwen2_5_VLProcessor"),
    "blip": ("transformers:BlipProcessor", "transformers:BlipConfig", "transformers:BlipForImageTextRetrieval"),
    "mlx": ("mlx_vlm",),
}  # module, or module:name where the name is what pulls the module in


_to_set_aside: bool | None = None  # None: nobody has asked; False: done


def own_the_process() -> None:
    """Nor look through the first ones later, which takes another second: for the command line, which has no other objects of its own yet.
    In a notebook what its user drops would stay, too."""
    global _to_set_aside
    if _to_set_aside is None:
        _to_set_aside = True


def _set_aside() -> None:
    """Once, before there is any model: one that is dropped later must be found."""
    global _to_set_aside
    if _to_set_aside:
        _to_set_aside = False
        gc.freeze()


def bring_in(loader: str) -> None:
    """Import the libraries of one loader, as its first load would. Raises ImportError as that would."""
    with _quiet(), _collector_at_rest():
        for needed in _NEEDED.get(loader, ()):
            module, _, name = needed.partition(":")
            found = importlib.import_module(module)
            if name:
                getattr(found, name)


def prepare(spec: ModelSpec) -> None:
    """Libraries, and what the loader keeps for this model (tokenizers). Raises what the load would."""
    bring_in(spec.loader)
    ready = getattr(find_loader(spec), "prepare", None)
    if ready is not None:
        with _collector_at_rest():
            ready(spec)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Imports make half a million objects and hardly any garbage: to look through them eight times takes a second (measured)."""
    works = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if works:
            _set_aside()
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers imports torchao wherever it is installed, and torch then logs how torchao registers its types."""
    told = logging.getLogger("torch.utils._pytree")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        yield
    finally:
        told.setLevel(level)
