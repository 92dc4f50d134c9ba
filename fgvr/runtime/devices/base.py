"""What the pool asks of a device. Bytes everywhere; nothing here imports a tensor library."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

HALF_AN_HOUR = 1800.0


class Device(Protocol):
    """One place where models live. Nobody asks it for its name to learn what it can do: that is what the attributes say."""

    optimize: bool
    """Whether models loaded for it get quicker layers where there are any, or compute as their libraries made them."""
    scratch: Path | None
    """Folder for the weights of models that take turns; only a device that `parks_on_disk` uses it. None: they are loaded again."""

    @property
    def name(self) -> str:
        """`cpu`, `cuda:0`, `simulated`."""
        ...

    @property
    def torch_name(self) -> str:
        """Where tensors go; a simulated device computes on the CPU."""
        ...

    @property
    def exact(self) -> bool:
        """Whether `allocated` counts tensors (CUDA), or only the process as a whole (CPU)."""
        ...

    @property
    def has_own_memory(self) -> bool:
        """Whether a model that leaves it can be parked in main memory; where both are one memory, a second copy saves nothing."""
        ...

    @property
    def parks_on_disk(self) -> bool:
        """Whether a model that leaves it can be parked in a file of `scratch`."""
        ...

    @property
    def host_share(self) -> float:
        """Share of main memory for parked models, where `runtime.host_budget` is auto."""
        ...

    @property
    def cleanup_seconds(self) -> float:
        """Time between two clean-ups of what nobody uses, where `runtime.cleanup_interval` is auto."""
        ...

    @property
    def total(self) -> int: ...

    def free(self) -> int:
        """What the whole machine could still take, whoever holds the rest."""
        ...

    def allocated(self) -> int:
        """In use by this process."""
        ...

    def reserved(self) -> int:
        """Held by this process, including freed blocks that its allocator keeps."""
        ...

    def peak(self) -> int:
        """The most `allocated` has been."""
        ...

    def limit(self, size: int) -> None:
        """Let the device itself refuse what would go beyond `size`, where it can: an accounting bug then is a local, catchable OOM."""
        ...

    def synchronize(self) -> None: ...

    def empty_cache(self) -> None:
        """Give freed blocks back to the machine."""
        ...

    def is_oom(self, error: BaseException) -> bool:
        """Whether this error, or one it was raised from, means that memory ran out."""
        ...


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
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError) or type(current).__name__ == "OutOfMemoryError":
            return True
        if isinstance(current, RuntimeError | OSError) and any(word in str(current).lower() for word in _OOM_WORDS):
            return True
        current = current.__cause__ or current.__context__
    return False


def held_by_others(device: Device) -> int:
    """Bytes of the device that are in use outside this process."""
    return max(0, device.total - device.free() - device.reserved())
