"""What the pool asks of a loader, and how a spec finds its own. Nothing here imports a tensor library."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from fgvr.errors import ConfigError
from fgvr.types import ModelSpec

if TYPE_CHECKING:
    from fgvr.runtime.devices.base import Device

LOADERS = ("clip", "timm", "qwen", "blip", "mlx", "remote", "fake", "none")
SANE_PIXELS = 1280 * 28 * 28  # 1,280 vision tokens per image; Qwen2.5-VL's own default is 16,384


class Model(Protocol):
    """A loaded model: one of protocols.Encoder, MLLM or JointEncoder that knows its size. One call is one batch."""

    @property
    def nbytes(self) -> int:
        """Weights, each storage counted once."""
        ...

    @property
    def movable(self) -> Movable | None:
        """How it moves to main memory and back, once placed; None: on its device or nowhere (quantised, unified memory, plain CPU)."""
        ...


class Movable(Protocol):
    """A model that can leave its device and come back without being loaded again. Never moved while it computes."""

    @property
    def nbytes(self) -> int:
        """On the device, when there."""
        ...

    @property
    def host_needed(self) -> int:
        """In main memory while parked; 0 when the weights lie on disk then."""
        ...

    @property
    def host_nbytes(self) -> int:
        """In main memory now; 0 until first parked."""
        ...

    @property
    def parked(self) -> bool: ...

    @property
    def kept(self) -> int:
        """Bytes that parking did not free since somebody holds tensors of it; 0 where the device itself shows that."""
        ...

    @property
    def cached(self) -> bool:
        """Whether what parking freed lies in an allocator's cache, to be emptied; an unmapped file does not."""
        ...

    def prepare(self) -> int:
        """Make the copy in main memory ahead of the first parking; its bytes."""
        ...

    def park(self) -> int:
        """Bytes freed on the device. Raises RuntimeConflict when the weights were written to."""
        ...

    def restore(self, device: Device) -> int:
        """Bytes brought back. Out of memory: it stays parked."""
        ...


class Loader(Protocol):
    """Everything about one family of models. Only `load` may import a tensor library (for local folders).

    One with a true attribute `elsewhere` lends models that compute in another process: they take no turns and exclude no construction.
    """

    def check(self, spec: ModelSpec) -> None:
        """Raises ModelLoadError: which files are missing, where they were looked for, how to get them."""
        ...

    def estimate(self, spec: ModelSpec) -> int:
        """Bytes of the weights once loaded, from file headers or configured shapes."""
        ...

    def work_bytes(self, spec: ModelSpec) -> int:
        """Bytes one batch of `spec.batch_size` needs beside the weights."""
        ...

    def fingerprint(self, spec: ModelSpec) -> str:
        """Identity of weights, dtype and preprocessing; cheap, nothing is loaded."""
        ...

    def logit_scale(self, spec: ModelSpec) -> float:
        """Encoders only: their inverse temperature, cheap, nothing is loaded."""
        ...

    def load(self, spec: ModelSpec, device: Device) -> Any:
        """The model. The pool calls this while nothing else computes, and moves it to the device by `place`, if it has one, after."""
        ...


def find_loader(spec: ModelSpec) -> Loader:
    """The loader named by the spec. Raises ConfigError with the known names."""
    if spec.loader not in LOADERS:
        raise ConfigError(f"{spec.role}: loader {spec.loader!r} is not known; known are {', '.join(LOADERS)}")
    return importlib.import_module(f"fgvr.runtime.loaders.{spec.loader}").LOADER
