"""What the pool asks of a loader, and how a spec finds its own. Nothing here imports a tensor library."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.plugins import find_plugin

if TYPE_CHECKING:
    from PIL.Image import Image

    from fgvr.protocols import ImageLike
    from fgvr.runtime.conversation import Conversation
    from fgvr.runtime.devices.base import Device

_NAMES = ("clip", "timm", "transformers", "blip", "mlx", "remote", "fake")
SHIPPED = {name: f"fgvr.runtime.loaders.{name}.LOADER" for name in _NAMES}
SHIPPED["none"] = f"{__name__}.NoneLoader"
SHIPPED["qwen"] = SHIPPED["transformers"]  # its name in configurations of older runs
SANE_PIXELS = 1280 * 28 * 28  # 1,280 vision tokens per image; Qwen2.5-VL's own default is 16,384


class Movable(Protocol):
    """A model that can leave its device and come back without being loaded again. Never moved while it computes."""

    @property
    def nbytes(self) -> int:
        """On the device, when there."""
        ...

    @property
    def host_needed(self) -> int:
        """In main memory while parked."""
        ...

    @property
    def host_nbytes(self) -> int:
        """In main memory now; 0 until first parked."""
        ...

    @property
    def parked(self) -> bool: ...

    def prepare(self) -> int:
        """Make the copy in main memory ahead of the first parking; its bytes."""
        ...

    def park(self) -> int:
        """Bytes freed on the device. Raises RuntimeConflict when the weights were written to."""
        ...

    def restore(self, device: Device) -> int:
        """Bytes brought back. Out of memory: it stays parked."""
        ...


class Loader:
    """Everything about one family of models. A subclass states `estimate`, `fingerprint`, `load`, and for encoders `logit_scale`; only
    `load` and `prepare` may import a tensor library. The other methods have answers that suit a model without special abilities."""

    converses: ClassVar[bool] = False
    """Whether its MLLMs answer conversations (`runtime.conversation.Conversing`)."""
    elsewhere: ClassVar[bool] = False
    """Whether its models compute in another process: they take no turns and exclude no construction."""
    quantizes: ClassVar[bool] = False
    """Whether it heeds `ModelSpec.quantization`."""
    offloads: ClassVar[bool] = False
    """Whether language layers of its models may lie beside the device (`ModelSpec.offloaded`)."""
    widens_half: ClassVar[bool] = False
    """Whether its models are computed in float32 on a device that would emulate float16."""
    has_text: ClassVar[bool] = True
    """Whether its encoders have a text side."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """What `load` imports: modules, or `module:name` where the name is what pulls the module in."""

    def check(self, spec: ModelSpec) -> None:
        """Raises ModelLoadError: which files are missing, where they were looked for, how to get them."""

    def estimate(self, spec: ModelSpec) -> int:
        """Bytes of the weights once loaded."""
        raise NotImplementedError

    def work_bytes(self, spec: ModelSpec) -> int:
        """Bytes that one batch of `spec.batch_size` needs beside the weights."""
        return 0

    def footprint(self, spec: ModelSpec, device: type[Device]) -> Footprint:
        """Both by parts, on this kind of device. Raises ModelLoadError when they cannot be known."""
        weights, work = self.estimate(spec), self.work_bytes(spec)
        return Footprint((PlanPart("weights", weights),), (PlanPart(f"batch of {spec.batch_size}", work),))

    def most_pixels(self, spec: ModelSpec) -> int:
        """Of the largest picture that a model sees in full."""
        return spec.max_pixels or SANE_PIXELS

    def fingerprint(self, spec: ModelSpec) -> str:
        """Identity of weights, dtype and preprocessing. Cheap: nothing is loaded."""
        raise NotImplementedError

    def logit_scale(self, spec: ModelSpec) -> float:
        """Encoders only: their inverse temperature. Cheap: nothing is loaded."""
        raise ConfigError(f"{spec.source} is no encoder: it has no logit scale")

    def load(self, spec: ModelSpec, device: Device) -> Any:
        """One of protocols.Encoder, MLLM or JointEncoder. The pool calls this while nothing else computes, and then the model's
        `place(device)`, if it has one.

        It has `nbytes` (weights, each storage counted once) and `movable`, once placed; None: it stays on its device or nowhere
        (quantised, unified memory, plain CPU).
        """
        raise NotImplementedError

    def prepare(self, spec: ModelSpec) -> Any:
        """Make what it keeps besides weights (tokenizers), ahead of the load."""

    def hub_repository(self, spec: ModelSpec) -> str | None:
        """The hub repository that a spec means; None for a folder, a shipped model, or one of an engine."""
        return None

    def describe_files(self, spec: ModelSpec) -> str:
        """For a plan: the family of a model folder, and whether its weights are here. Reads no weights; "" where there is no folder."""
        return ""

    def describe(self, spec: ModelSpec) -> str:
        """For the doctor: what would be loaded."""
        return ": ".join(filter(None, (spec.source, self.describe_files(spec))))

    def is_half(self, spec: ModelSpec) -> bool:
        """Whether the model would be computed in float16."""
        return spec.dtype == "float16"

    def check_prompt(self, spec: ModelSpec, ask: Conversation) -> None:
        """For servers: raises ConfigError for a prompt that is longer than context or memory plan allow. Loads tokenizers only.

        An engine elsewhere knows its own limit.
        """

    def abilities(self, spec: ModelSpec) -> Any:
        """What an engine behind HTTP can do; None: the model is computed here."""
        return None


class NoneLoader(Loader):
    """No model: a configuration without an MLLM or a joint encoder (`models/mllm=none`). It weighs nothing; loading says the cure."""

    def check(self, spec: ModelSpec) -> None:
        raise ModelLoadError(
            f"this configuration has no {spec.role} (models/{spec.role}=none): choose one, such as models/{spec.role}=tiny"
        )

    def estimate(self, spec: ModelSpec) -> int:
        return 0

    def fingerprint(self, spec: ModelSpec) -> str:
        return "none"

    def load(self, spec: ModelSpec, device: Device) -> Any:
        self.check(spec)


def pil(image: ImageLike) -> Image:
    """The image itself, of a Picture or as it is; a very long one is padded, as every image processor accepts it."""
    from fgvr.types import Picture
    from fgvr.utils.images import pad_long_image

    return pad_long_image(image.image if isinstance(image, Picture) else image)


def scaled_down(image: Image, most: int) -> Image:
    """The image with at most so many pixels."""
    scale = math.sqrt(most / (image.width * image.height))
    return image if scale >= 1 else image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def find_loader(spec: ModelSpec) -> Loader:
    """The loader named by the spec: a shipped one, an entry point of the group `fgvr.loaders`, or the dotted name of a Loader.

    Raises ConfigError with the known names.
    """
    return _loader(spec.loader, f"models.{spec.role}.loader")


@cache
def _loader(name: str, key: str) -> Loader:
    found = find_plugin("fgvr.loaders", name, SHIPPED, key)
    loader = found() if isinstance(found, type) else found
    if not isinstance(loader, Loader):
        raise ConfigError(f"{key}={name} is no fgvr.runtime.loaders.base.Loader: {type(loader).__name__}")
    return loader
