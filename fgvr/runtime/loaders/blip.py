"""BLIP image-text matching (`BlipForImageTextRetrieval`) from `from_pretrained` folders: `tiny`, a folder, or a hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import complete, files
from fgvr.runtime.loaders.folders import FolderLoader
from fgvr.runtime.sizes import towers
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec

CONFIG = "config.json"
_ARCHITECTURE = "BlipForImageTextRetrieval"


class BlipLoader(FolderLoader):
    """Loader for role `joint`."""

    needed = (CONFIG, "*.safetensors", "tokenizer.json|vocab.txt", "preprocessor_config.json|processor_config.json")
    widens_half = True
    libraries = ("transformers:BlipProcessor", "transformers:BlipConfig", "transformers:BlipForImageTextRetrieval")

    def read_config(self, spec: ModelSpec, folder: Path) -> dict[str, Any]:
        config = files.read_config(folder / CONFIG)
        named = config.get("architectures")
        kinds = named if named and isinstance(named, list) else [config.get("model_type")]
        if _ARCHITECTURE not in kinds:
            raise ModelLoadError(
                f"{folder} holds {', '.join(map(str, kinds))}, not {_ARCHITECTURE}.\n"
                f"Point models.{spec.role}.source at an image-text BLIP, such as Salesforce/blip-itm-base-coco, or write models/joint=none"
            )
        return config

    def footprint(self, spec: ModelSpec, device: type[Device]) -> Footprint:
        """At worst every pair of a batch has a picture of its own."""
        folder = self.locate(spec)
        config = files.read_config(folder / CONFIG) if folder and (folder / CONFIG).is_file() else {}
        tower = config.get("vision_config")
        side = tower.get("image_size", 384) if isinstance(tower, dict) else 384
        found = files.weight_files(folder) if folder else []
        return towers.footprint(spec, found, name=spec.source, vision="vision_model.", side=side, eager=True)

    def open_processor(self, spec: ModelSpec, folder: Path) -> Any:
        from transformers import BlipProcessor

        return BlipProcessor.from_pretrained(folder, local_files_only=True)

    def build(self, spec: ModelSpec, folder: Path, config: dict[str, Any], dtype: str, device: Device) -> Any:
        from transformers import BlipConfig, BlipForImageTextRetrieval

        def skeleton() -> Any:
            return BlipForImageTextRetrieval(BlipConfig(**config))

        return complete.assemble(skeleton, folder, files.weight_files(folder), dtype, position_ids=complete.positions)

    def load(self, spec: ModelSpec, device: Device) -> Any:
        opened = self.open(spec, device)
        from fgvr.runtime.loaders.encoders import BlipMatcher

        return BlipMatcher(self.fingerprint(spec), opened.module, opened.processor, opened.lock)


LOADER = BlipLoader()
