"""A device of a declared size that refuses with PyTorch's own OOM class: every promise of the pool is tested on it without a GPU."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Self

from fgvr.errors import ConfigError
from fgvr.runtime.budget import parse_bytes
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.live_tensors import peak_of_tensors


class Block:
    """Some simulated bytes; they come back when the last reference goes, as a tensor's do."""

    __slots__ = ("__weakref__", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


class SimulatedDevice(Device):
    """Counts `allocate`d blocks like a caching allocator: what is freed stays reserved until `empty_cache`."""

    name = "simulated"
    exact = has_own_memory = quantizes = is_numbered = True
    offload_place, offload_rate = "cpu", 12e9

    def __init__(self, total: int) -> None:
        self.total = self._limit = total
        self._lock = threading.Lock()
        self._freed: deque[int] = deque()  # finalizers run anywhere, even under our lock, so they only enqueue
        self._allocated = self._reserved = self._peak = 0

    @classmethod
    def open(cls, argument: str) -> Self:
        if not (size := parse_bytes(argument)):
            raise ConfigError("a size follows the colon")
        return cls(size)

    @classmethod
    def emulates_half(cls, *, chosen_by_auto: bool) -> bool:
        return True

    def allocate(self, nbytes: int) -> Block:
        """Raises torch.OutOfMemoryError beyond the limit."""
        with self._lock:
            self._drain()
            wanted = self._allocated + nbytes
            if wanted <= self._limit:
                self._allocated = wanted
                self._reserved = max(self._reserved, wanted)
                self._peak = max(self._peak, wanted)
                block = Block(nbytes)
                weakref.finalize(block, self._freed.append, nbytes).atexit = False
                return block
        import torch

        raise torch.OutOfMemoryError(f"simulated out of memory: {nbytes} bytes wanted, {wanted - nbytes} of {self._limit} in use")

    def free(self) -> int:
        return self.total - self.reserved()

    def allocated(self) -> int:
        with self._lock:
            self._drain()
            return self._allocated

    def reserved(self) -> int:
        with self._lock:
            self._drain()
            return self._reserved

    def peak(self) -> int:
        return self._peak

    def measure(self, call: Callable[[], object]) -> int:
        """Blocks, and the tensors of real models."""
        with self._lock:
            self._drain()
            before, highest = self._allocated, self._peak
            self._peak = before
        try:
            tensors = peak_of_tensors(call)
        finally:
            with self._lock:
                blocks, self._peak = self._peak - before, max(self._peak, highest)
        return blocks + tensors

    def limit(self, size: int) -> None:
        with self._lock:
            self._limit = min(size, self.total)

    def empty_cache(self) -> None:
        with self._lock:
            self._drain()
            self._reserved = self._allocated

    def _drain(self) -> None:
        while self._freed:
            self._allocated -= self._freed.popleft()
