"""What a model needs besides its weights and that is made once per process: tokenizers and image processors.

Qwen2.5-VL's tokenizer takes 80 MiB and a second: made anew with each load it would be memory that comes and goes beside the ledger. Kept,
it is part of what the process holds before its first load, as libraries are, and a model that returns from disk returns sooner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_making = threading.Lock()
_kept: dict[str, tuple[Any, threading.Lock]] = {}  # by a model's fingerprint: what it is made of decides how text and pixels are read


def once(fingerprint: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, the first time; one thread makes it."""
    with _making:
        if fingerprint not in _kept:
            _kept[fingerprint] = (make(), threading.Lock())
        return _kept[fingerprint][0]


def lock_of(fingerprint: str) -> threading.Lock:
    """Tokenizers change their own settings in each call: two models of the same kind, in two pools, take turns."""
    with _making:
        return _kept[fingerprint][1] if fingerprint in _kept else threading.Lock()
