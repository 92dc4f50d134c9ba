"""CLIP-like encoders from open_clip folders: `open_clip_config.json`, `open_clip_model.safetensors`, tokenizer files.

Sources: `tiny`, a folder, a hub repository in that format, or open_clip's own "ViT-B-32/openai". The skeleton is built on the meta device
and the file's tensors are assigned to it: 27 times faster than building, initialising and copying.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import complete, files
from fgvr.runtime.loaders.folders import FolderLoader
from fgvr.runtime.sizes import towers
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUB = "hf-hub:"  # open_clip's and timm's own prefix of a repository
# open_clip's "architecture/tag" names as hub repositories; others are looked up in open_clip itself, when loading.
REPOSITORIES = {
    "ViT-B-32/openai": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B-16/openai": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14/openai": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336/openai": "timm/vit_large_patch14_clip_336.openai",
    "ViT-B-32/laion2b_s34b_b79k": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "ViT-H-14/laion2b_s32b_b79k": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
_NAME = re.compile(r"(ViT|RN|convnext|coca|EVA|SigLIP)[\w-]*")


class ClipLoader(FolderLoader):
    """Loader for role `encoder`."""

    needed = (CONFIG, WEIGHTS)
    weights = WEIGHTS
    unneeded = ("model.safetensors",)  # the weights a second time, for other programs
    widens_half = True
    libraries = ("open_clip.transform",)

    def repository(self, spec: ModelSpec) -> str | None:
        """The hub repository behind `hf-hub:NAME` and open_clip's own names. Imports open_clip for those that are not listed."""
        if spec.source.startswith(HUB):
            return spec.source.removeprefix(HUB)
        architecture, _, tag = spec.source.partition("/")
        if spec.source in REPOSITORIES or not _NAME.fullmatch(architecture) or not tag or Path(spec.source).exists():
            return REPOSITORIES.get(spec.source)
        import open_clip

        return (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "").rstrip("/") or None

    def read_config(self, spec: ModelSpec, folder: Path) -> dict[str, Any]:
        config = files.read_config(folder / CONFIG)
        model = config.get("model_cfg")
        if not isinstance(model, dict) or not all(isinstance(model.get(part), dict) for part in ("vision_cfg", "text_cfg")):
            raise ModelLoadError(f"{folder / CONFIG} has no model_cfg with vision_cfg and text_cfg: it is no encoder in open_clip's form")
        return config

    def footprint(self, spec: ModelSpec, device: type[Device]) -> Footprint:
        folder, repository = self.locate(spec), self.repository(spec)
        if folder is None or not (folder / CONFIG).is_file():
            return towers.footprint(spec, (), name=spec.source.partition("/")[0], repository=repository)
        side = self.read_config(spec, folder)["model_cfg"]["vision_cfg"].get("image_size", 224)
        found = files.weight_files(folder, WEIGHTS)
        return towers.footprint(
            spec, found, repository=repository, vision="visual.", side=max(side, default=0) if isinstance(side, list) else side
        )

    def logit_scale(self, spec: ModelSpec) -> float:
        """As the file has it, whatever the dtype computed in."""
        return math.exp(files.read_scalar(self.fetch(spec) / WEIGHTS, "logit_scale"))

    def open_processor(self, spec: ModelSpec, folder: Path) -> Any:
        import open_clip

        return open_clip.get_tokenizer(f"local-dir:{folder}")

    def build(self, spec: ModelSpec, folder: Path, config: dict[str, Any], dtype: str, device: Device) -> Any:
        """Only plain CLIPs are built by us; open_clip builds the others."""
        import open_clip

        from fgvr.runtime.loaders.tensors import torch_dtype

        model = config["model_cfg"]
        plain = not {"custom_text", "multimodal_cfg"} & set(model) and "timm_model_name" not in model["vision_cfg"]
        if plain and "hf_model_name" not in model["text_cfg"]:
            try:
                return complete.assemble(lambda: open_clip.CLIP(**model), folder, [folder / WEIGHTS], dtype, attn_mask=complete.causal_mask)
            except TypeError as error:
                raise ModelLoadError(
                    f"{folder / CONFIG} describes no CLIP that open_clip {open_clip.__version__} knows ({error})"
                ) from error
        try:
            return open_clip.create_model(f"local-dir:{folder}", load_weights=True).to(torch_dtype(dtype))
        except RuntimeError as error:
            if "loading state_dict" not in str(error):  # out of memory is the pool's to mend
                raise
            raise ModelLoadError(f"{folder}: weights and {CONFIG} do not belong together ({error}); get both again") from error

    def load(self, spec: ModelSpec, device: Device) -> Any:
        opened = self.open(spec, device)
        from open_clip import transform

        from fgvr.runtime.loaders.encoders import ClipEncoder

        preprocess = transform.image_transform_v2(transform.PreprocessCfg(**opened.config.get("preprocess_cfg", {})), is_train=False)
        return ClipEncoder(self.fingerprint(spec), self.logit_scale(spec), opened.module, preprocess, opened.processor, opened.lock)


LOADER = ClipLoader()
