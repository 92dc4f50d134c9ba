"""Tokenizers and image processors, made once per process.

Qwen2.5-VL's tokenizer takes 80 MiB and a second. A model that returns from disk finds it here and returns sooner, and its memory is part of
what the process holds before the first load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_making = threading.Lock()
_kept: dict[str, tuple[Any, threading.Lock]] = {}  # by the fingerprint of a model, which covers the files of its processor


def once(fingerprint: str, make: Callable[[], Any]) -> tuple[Any, threading.Lock]:
    """What `make` returned the first time, and its lock: tokenizers change their own settings in each call, and models share them."""
    with _making:
        if fingerprint not in _kept:
            _kept[fingerprint] = (make(), threading.Lock())
        return _kept[fingerprint]
