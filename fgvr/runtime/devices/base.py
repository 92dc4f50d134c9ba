"""What the pool asks of a device. Bytes everywhere; nothing here imports a tensor library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import ClassVar, Self

from fgvr.errors import ConfigError, causes

HALF_AN_HOUR = 1800.0
_LOOK_SECONDS = 0.002


class Device:
    """One place where models live. Nobody compares its name: its attributes and class methods say what it can do.

    A subclass states `name`, `total`, `free` and `allocated`. Where `allocated` counts tensors, it sets `exact`; the other attributes
    are those of a device without special abilities. The class methods answer before any device is opened and import no tensor library
    unless they say so.
    """

    name: str
    """As `runtime.device` names it: `cpu`, `cuda:0`."""
    total: int
    torch_name: str = "cpu"
    """Where PyTorch puts tensors; a simulated device computes on the CPU."""
    exact: bool = False
    """Whether `allocated` counts tensors (CUDA), or only the process as a whole (CPU)."""
    has_own_memory: ClassVar[bool] = False
    """Whether a model that leaves it can be parked in main memory. Where both are one memory, a second copy saves nothing."""
    offload_place: ClassVar[str] = ""
    """Where layers of a model lie that its memory has no room for: cpu or disk; empty: such a place would save nothing."""
    offload_rate: ClassVar[float] = 0.0
    """Bytes per second from there, roughly."""
    probes: ClassVar[bool] = False
    """Whether working memory is measured at a model's first load, where `runtime.probe` is auto."""
    quantizes: ClassVar[bool] = False
    """Whether torchao and bitsandbytes work on it."""
    allocator: ClassVar[str] = ""
    """The section of `runtime.allocator` that applies: cuda, mps or cpu."""
    host_share: ClassVar[float] = 0.0
    """Share of main memory for parked models, where `runtime.host_budget` is auto."""
    cleanup_seconds: ClassVar[float] = HALF_AN_HOUR
    """Time between two clean-ups of unused memory, where `runtime.cleanup_interval` is auto."""
    is_numbered: ClassVar[bool] = False
    """Whether each opening is another device, so that `runtime.device` may name it several times."""
    optimize: bool = True
    """Whether models loaded for it get quicker layers where there are any."""

    @classmethod
    def open(cls, argument: str) -> Self:
        """The device; `argument` follows the colon in `runtime.device`. Raises ConfigError when it is not there."""
        if argument:
            raise ConfigError(f"runtime.device: nothing may follow the colon (found {argument!r})")
        return cls()

    @classmethod
    def all_names(cls) -> tuple[str, ...]:
        """Those of this kind that the machine has, as `runtime.device` names them. May import a tensor library."""
        return (cls.name,)

    @classmethod
    def may_be_here(cls) -> bool:
        """Whether the machine looks as if it had one; `auto` then considers it."""
        return True

    @classmethod
    def is_here(cls) -> bool:
        """The same for certain; may import torch."""
        return cls.may_be_here()

    @classmethod
    def fastest_dtype(cls, argument: str) -> str:
        """What `dtype=fastest` means: the shortest type that it multiplies without emulation. May import torch."""
        return "float32"

    @classmethod
    def emulates_half(cls, *, chosen_by_auto: bool) -> bool:
        """Whether it has no units for float16."""
        return False

    def current(self) -> AbstractContextManager[object]:
        """Around loads and batches: what libraries allocate without naming a device goes here."""
        return nullcontext()

    def allocate(self, nbytes: int) -> object:
        """Bytes that a device without memory of its own counts while somebody holds what is returned; None from any real one."""
        return None

    def free(self) -> int:
        """What the whole machine could still take, whoever holds the rest."""
        raise NotImplementedError

    def allocated(self) -> int:
        """In use by this process."""
        raise NotImplementedError

    def reserved(self) -> int:
        """Held by this process, including freed blocks that its allocator keeps."""
        return self.allocated()

    def peak(self) -> int:
        """The most `allocated` has been."""
        return self.allocated()

    def measure(self, call: Callable[[], object]) -> int:
        """Bytes that a call takes at its widest moment. Here: as seen every few milliseconds by another thread."""
        before = highest = self.allocated()
        done = threading.Event()

        def look() -> None:
            nonlocal highest
            while not done.wait(_LOOK_SECONDS):
                highest = max(highest, self.allocated())

        watcher = threading.Thread(target=look, name="fgvr-probe", daemon=True)
        watcher.start()
        try:
            call()
            self.synchronize()
        finally:
            done.set()
            watcher.join()
        return max(highest, self.allocated()) - before

    def limit(self, size: int) -> None:
        """Let the device itself refuse what would go beyond `size`, where it can: an accounting bug then is a local, catchable OOM."""

    def synchronize(self) -> None:
        """Wait until everything that was queued is done."""

    def empty_cache(self) -> None:
        """Give freed blocks back to the machine."""

    def is_oom(self, error: BaseException) -> bool:
        """Whether this error, or one it was raised from, means that memory ran out."""
        found = is_oom(error)
        if found:
            with suppress(RuntimeError):
                self.synchronize()  # what is queued fails here, not in somebody else's call
        return found


# PyTorch, CUDA libraries, MPS, MLX and the C allocator each say it in their own words.
_OOM_WORDS = (
    "out of memory",
    "cublas_status_alloc_failed",
    "defaultcpuallocator: can't allocate",
    "not enough memory",
    "[malloc]",
    "[metal::malloc]",
    "cannot allocate memory",
)


def is_oom(error: BaseException) -> bool:
    """Whether an error or one of its causes reports exhausted memory, judged without importing any library."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or (isinstance(cause, RuntimeError | OSError) and any(word in str(cause).lower() for word in _OOM_WORDS))
        for cause in causes(error)
    )


def held_by_others(device: Device) -> int:
    """Bytes of the device that are in use outside this process."""
    return max(0, device.total - device.free() - device.reserved())
