"""What a model brings with it besides weights, ahead of its load: a process can then be measured without weights."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from fgvr.runtime.loaders.base import Loader, find_loader
from fgvr.types import ModelSpec
from fgvr.utils.logging import adopt_libraries

_freezes: bool | None = None  # None: nobody has asked for it; False: done


def freeze_after_imports() -> None:
    """From the first import on, the collector skips what exists then, which saves another second. Only for the command line: in a notebook
    what its user drops would stay, too."""
    global _freezes
    if _freezes is None:
        _freezes = True


def _freeze() -> None:
    """Once, before there is any model: a model that is dropped later must be found."""
    global _freezes
    if _freezes:
        _freezes = False
        gc.freeze()
        if sys.modules.get("triton") is not None:
            atexit.register(gc.unfreeze)  # nanobind reports types that are still alive at exit as leaks; takes 1.4 s


def import_libraries(loader: Loader) -> None:
    """Import the libraries of one loader, as its first load would. Raises ImportError as that would.

    Models that are elsewhere, and fakes, have none: their process saves two seconds and 300 MB of torch.
    """
    if not loader.libraries:
        return
    with _without_collection():
        if _freezes:
            _import_torch()
        for needed in loader.libraries:
            module, _, name = needed.partition(":")
            found = importlib.import_module(module)
            if name:
                getattr(found, name)
        adopt_libraries()


def _import_torch() -> None:
    """Ahead of what imports it, to drop its own log handlers, and triton: a compiler of GPU kernels that torch imports wherever it is
    installed. Without a GPU nothing uses triton, and what it leaves at exit would be reported as leaks."""
    import torch

    adopt_libraries()
    if not (torch.cuda.is_available() or torch.xpu.is_available()):
        sys.modules.setdefault("triton", None)  # pyright: ignore[reportArgumentType]  (Python's way to say: cannot be imported)


def prepare(spec: ModelSpec) -> None:
    """Libraries, and what the loader keeps for this model (tokenizers). Raises what the load would."""
    loader = find_loader(spec)
    import_libraries(loader)
    with _without_collection() if loader.libraries else nullcontext():
        loader.prepare(spec)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Imports make half a million objects and hardly any garbage; eight collections of them take a third of a short command."""
    works = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if works:
            _freeze()
            gc.enable()
