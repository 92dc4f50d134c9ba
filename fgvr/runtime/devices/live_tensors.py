"""Bytes of tensors at the widest moment of a call, where the device does not count them itself: main memory, and a simulated GPU.

PyTorch shows every operation to a dispatch mode, which meets the storages of its tensors; a weak reference says when one is freed. Nothing
depends on time or on the C library, so the same call takes the same bytes. The mode is on for the call alone: other calls cost nothing.

Not seen: what a kernel takes inside itself (scratch of oneDNN and MKL), arrays and pictures before they are tensors, other threads.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any


def peak_of_tensors(call: Callable[[], object]) -> int:
    """What was there before the call and outlives it (weights) is not the call's. 0 in a process without PyTorch."""
    if "torch" not in sys.modules:
        call()
        return 0
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    changes: list[tuple[int, int]] = []  # number of a storage, bytes more or less
    live: dict[int, weakref.ref[Any]] = {}  # by address
    given: set[int] = set()  # numbers of those that an operation read before any had made them

    def free(address: int, number: int, size: int, _: object) -> None:
        del live[address]
        given.discard(number)
        changes.append((number, -size))

    def meet(values: object, *, made: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            address, size, number = storage.data_ptr(), storage.nbytes(), len(changes)
            if size and address not in live:
                live[address] = weakref.ref(storage, partial(free, address, number, size))
                changes.append((number, size))
                if not made:
                    given.add(number)

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            meet((args, kwargs), made=False)
            result = func(*args, **(kwargs or {}))
            meet(result, made=True)
            return result

    with Watching():
        call()
    level = peak = 0
    for number, change in tuple(changes):
        if number not in given:
            level += change
            peak = max(peak, level)
    return peak
