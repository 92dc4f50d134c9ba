"""What a model brings with it besides weights, ahead of its load: a process can then be measured without weights."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fgvr.runtime.loaders.base import Loader, find_loader
from fgvr.types import ModelSpec
from fgvr.utils.logging import adopt_libraries

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
        if sys.modules.get("triton") is not None:
            atexit.register(gc.unfreeze)  # nanobind reports types that are still alive at exit as leaks; takes 1.4 s


def bring_in(loader: Loader) -> None:
    """Import the libraries of one loader, as its first load would. Raises ImportError as that would."""
    with _collector_at_rest():
        if _to_set_aside:
            _torch_first()
        for needed in loader.libraries:
            module, _, name = needed.partition(":")
            found = importlib.import_module(module)
            if name:
                getattr(found, name)
        adopt_libraries()


def _torch_first() -> None:
    """Ahead of what imports it: its own log handlers go, and so does triton, a compiler of GPU kernels that torch imports wherever it is
    installed. Without a GPU nothing uses it, and what it leaves at exit would be reported as leaks."""
    import torch

    adopt_libraries()
    if not (torch.cuda.is_available() or torch.xpu.is_available()):
        sys.modules.setdefault("triton", None)  # pyright: ignore[reportArgumentType]  (Python's way to say: cannot be imported)


def prepare(spec: ModelSpec) -> None:
    """Libraries, and what the loader keeps for this model (tokenizers). Raises what the load would."""
    loader = find_loader(spec)
    bring_in(loader)
    with _collector_at_rest():
        loader.prepare(spec)


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
