"""What loaders of model folders have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import CpuDevice
from fgvr.runtime.loaders import complete, files, libraries
from fgvr.runtime.loaders.base import Loader
from fgvr.types import ModelSpec
from fgvr.utils.paths import user_path

_making = threading.Lock()
_kept: dict[str, tuple[Any, threading.Lock]] = {}  # by the fingerprint of a model, which covers the files of its processor


def _once(fingerprint: str, make: Callable[[], Any]) -> tuple[Any, threading.Lock]:
    """What `make` returned the first time, and its lock: tokenizers change their own settings in each call, and models share them.

    Qwen2.5-VL's tokenizer takes 80 MiB and a second. A model that returns from disk finds it here and returns sooner, and its memory is
    part of what the process holds before the first load.
    """
    with _making:
        if fingerprint not in _kept:
            _kept[fingerprint] = (make(), threading.Lock())
        return _kept[fingerprint]


class Opened(NamedTuple):
    """A frozen module with its layers optimised, the folder's configuration, and the tokenizer or processor with its lock."""

    module: Any
    config: dict[str, Any]
    processor: Any
    lock: threading.Lock


class FolderLoader(Loader):
    """Reads folders that are shipped, local, or in the Hugging Face cache.

    A subclass states `needed`, `footprint`, `open_processor`, `build`, and a `load` that wraps what `open` returns.
    """

    needed: ClassVar[tuple[str, ...]]
    """Files without which nothing can be loaded; `a|b` = either."""
    weights: ClassVar[str] = "*.safetensors"
    unneeded: ClassVar[tuple[str, ...]] = ()
    """Files of its repositories that are left out of a download."""

    def repository(self, spec: ModelSpec) -> str | None:
        """The hub repository, where the source is another name for it."""
        return None

    def read_config(self, spec: ModelSpec, folder: Path) -> dict[str, Any]:
        """The model's configuration. Raises ModelLoadError when the folder holds another kind of model."""
        return files.read_config(folder / "config.json")

    def hub_repository(self, spec: ModelSpec) -> str | None:
        if spec.source == "tiny" or user_path(spec.source).exists():
            return None
        return self.repository(spec) or (spec.source if files.is_repository(spec.source) else None)

    def locate(self, spec: ModelSpec) -> Path | None:
        return files.locate(spec, self.repository(spec))

    def fetch(self, spec: ModelSpec) -> Path:
        """The whole folder. Raises ModelLoadError."""
        return files.require(spec, self.needed, self.repository(spec))

    def open_processor(self, spec: ModelSpec, folder: Path) -> Any:
        """The tokenizer or processor; made once per process."""
        raise NotImplementedError

    def build(self, spec: ModelSpec, folder: Path, config: dict[str, Any], dtype: str, device: Device) -> Any:
        """The module with its weights, on the CPU unless it is quantised."""
        raise NotImplementedError

    def prepare(self, spec: ModelSpec) -> tuple[Any, threading.Lock]:
        folder = self.fetch(spec)
        return _once(self.fingerprint(spec), lambda: self.open_processor(spec, folder))

    def open(self, spec: ModelSpec, device: Device) -> Opened:
        """All that a loaded model needs. Raises ModelLoadError."""
        folder = self.fetch(spec)
        config = self.read_config(spec, folder)
        dtype = files.resolve_dtype(spec.dtype, files.read_weights(files.weight_files(folder, self.weights)))
        libraries.import_libraries(self)
        from fgvr.runtime.loaders import optimize_layers, tensors

        tensors.set_threads()
        module = tensors.freeze(self.build(spec, folder, config, dtype, device))
        if not spec.quantization:
            optimize_layers.optimize(module, device)
        return Opened(module, config, *self.prepare(spec))

    def check(self, spec: ModelSpec) -> None:
        self.read_config(spec, self.fetch(spec))

    def estimate(self, spec: ModelSpec) -> int:
        return self.footprint(spec, CpuDevice).weight_bytes

    def work_bytes(self, spec: ModelSpec) -> int:
        return self.footprint(spec, CpuDevice).work_bytes

    def fingerprint(self, spec: ModelSpec) -> str:
        folder = self.fetch(spec)
        return files.folder_fingerprint(spec, folder, extra=self.fingerprint_extra(spec, folder))

    def fingerprint_extra(self, spec: ModelSpec, folder: Path) -> Any:
        """What else of the loading changes answers."""
        return None

    def describe_files(self, spec: ModelSpec) -> str:
        folder = self.locate(spec)
        if folder is None:
            return f"{spec.source} is not on this machine: sizes are those of the published model"
        config = folder / "config.json"
        kind = self.describe_family(files.read_config(config)) if config.is_file() else "an encoder of open_clip, supported"
        if absent := files.absent_shards(folder):
            weights = f"{len(absent)} of its weight files are missing ({files.first(absent)})"
        else:
            weights = "its weights are here" if files.weight_files(folder, self.weights) else "its weights are missing"
        return f"{kind}; {weights}"

    def describe_family(self, config: Mapping[str, Any]) -> str:
        """What a config.json says the folder holds, and whether this loader reads it."""
        return f"{complete.family(config)}, supported"

    def is_half(self, spec: ModelSpec) -> bool:
        folder = self.locate(spec)
        if spec.dtype != "auto" or folder is None:
            return spec.dtype == "float16"
        try:
            return files.resolve_dtype(spec.dtype, files.read_weights(files.weight_files(folder, self.weights))) == "float16"
        except ModelLoadError:  # damaged: said, with the cure, by whoever loads it or looks after the files
            return False
