"""BLIP image-text matching (`BlipForImageTextRetrieval`) from `from_pretrained` folders: `tiny`, a folder, or a hub repository.

The picture goes through the vision tower once however many texts it meets; every text is read while looking at its picture, and the
matching head gives the probability. The skeleton is built on the meta device and the file's tensors are assigned to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.loaders import complete, files, libraries, processor_cache
from fgvr.runtime.sizes.blip import CONFIG, footprint
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec, Picture

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike
    from fgvr.runtime.devices.base import Device
    from fgvr.runtime.loaders.base import Movable

PREPROCESSOR = "preprocessor_config.json|processor_config.json"
NEEDED = (CONFIG, "*.safetensors", "tokenizer.json|vocab.txt", PREPROCESSOR)
_ARCHITECTURE = "BlipForImageTextRetrieval"


class BlipLoader:
    """Loader for role `joint`."""

    def check(self, spec: ModelSpec) -> None:
        folder = files.require(spec, NEEDED)
        if folder is not None:
            _read_config(spec, folder)

    def footprint(self, spec: ModelSpec, device: str = "cpu") -> Footprint:
        return footprint(spec, device)

    def estimate(self, spec: ModelSpec) -> int:
        return footprint(spec).weight_bytes

    def work_bytes(self, spec: ModelSpec) -> int:
        """At worst every pair of a batch has a picture of its own; see sizes/blip.py."""
        return footprint(spec).work_bytes

    def fingerprint(self, spec: ModelSpec) -> str:
        return files.folder_fingerprint(spec, files.fetch(spec, NEEDED))

    def logit_scale(self, spec: ModelSpec) -> float:
        raise ConfigError(f"{spec.source} is an image-text matcher: it has no logit scale")

    def load(self, spec: ModelSpec, device: Device) -> BlipMatcher:
        folder = files.fetch(spec, NEEDED)
        config = _read_config(spec, folder)
        weights = files.read_weights(files.weight_files(folder))
        libraries.bring_in("blip")
        from fgvr.runtime.loaders import optimize_layers, tensors

        tensors.set_threads()
        dtype = files.resolve_dtype(spec.dtype, weights)
        module = _assemble(folder, config, dtype)
        return BlipMatcher(self.fingerprint(spec), optimize_layers.optimize(tensors.freeze(module), device), self.prepare(spec))

    def prepare(self, spec: ModelSpec) -> Any:
        """Its processor; kept."""
        folder = files.fetch(spec, NEEDED)

        def make() -> Any:
            from transformers import BlipProcessor

            return BlipProcessor.from_pretrained(folder, local_files_only=True)

        return processor_cache.once(self.fingerprint(spec), make)


class BlipMatcher:
    """protocols.JointEncoder on one batch per call. The forward pass keeps no state; the tokenizer has a lock."""

    def __init__(self, fingerprint: str, module: Any, processor: Any) -> None:
        from fgvr.runtime.loaders.tensors import module_bytes

        self.fingerprint = fingerprint
        self.nbytes = module_bytes(module)
        self.movable: Movable | None = None
        self._module, self._images, self._tokenizer = module, processor.image_processor, processor.tokenizer
        self._tokenizer_lock = processor_cache.lock_of(fingerprint)
        self._context = int(module.config.text_config.max_position_embeddings)

    def place(self, device: Device) -> None:
        from fgvr.runtime.loaders import flat_weights

        self.movable = flat_weights.place(self._module, device)

    def match(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        """(B,) float32: probability that image i shows text i. One image given many times is looked at once.

        A text longer than the context is read in equal parts and their probabilities are averaged.
        """
        import torch

        if not texts:
            return np.zeros(0, np.float32)
        distinct, numbers = _distinct(images)
        with self._tokenizer_lock:
            parts = [self._parts(text) for text in texts]
        ids, mask = self._padded([part for pieces in parts for part in pieces])
        picture = torch.tensor([number for number, pieces in zip(numbers, parts, strict=True) for _ in pieces])
        device = self._module.device
        with torch.inference_mode():
            seen = self._look(distinct)[picture.to(device)]
            read = self._module.text_encoder(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
            ).last_hidden_state
            matched = self._module.itm_head(read[:, 0]).float().softmax(-1)[:, 1].cpu().numpy()
        ends = np.cumsum([len(pieces) for pieces in parts])
        return np.array([part.mean() for part in np.split(matched, ends[:-1])], np.float32)

    def _look(self, images: Sequence[Any]) -> Any:
        """Tokens of the vision tower, (images, tokens, width)."""
        pixels = self._images(images=list(images), return_tensors="pt")["pixel_values"]
        return self._module.vision_model(pixel_values=pixels.to(self._module.device, self._module.dtype)).last_hidden_state

    def _parts(self, text: str) -> list[list[int]]:
        """Ids with their marks, in as few equal parts as the context asks for."""
        words = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        room = self._context - 2
        pieces = np.array_split(words, max(1, -(-len(words) // room)))
        return [[self._tokenizer.cls_token_id, *piece.astype(int).tolist(), self._tokenizer.sep_token_id] for piece in pieces]

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Any, Any]:
        """Ids and mask, int64, padded on the right."""
        import torch

        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self._tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        return ids, mask


def _distinct(images: Sequence[ImageLike]) -> tuple[list[Any], list[int]]:
    """Each image once, as PIL, and which of them stands at each place. Pictures are told apart by content, PIL images by identity."""
    places: dict[object, int] = {}
    found: list[Any] = []
    numbers = []
    for image in images:
        key = (image.sha256 or id(image.image)) if isinstance(image, Picture) else id(image)
        if key not in places:
            places[key] = len(found)
            found.append(image.image if isinstance(image, Picture) else image)
        numbers.append(places[key])
    return found, numbers


def _read_config(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """The model's configuration. Raises ModelLoadError when the folder holds another kind of model."""
    config = files.read_config(folder / CONFIG)
    kinds = config.get("architectures") or [config.get("model_type")]
    if _ARCHITECTURE not in kinds:
        raise ModelLoadError(
            f"{folder} holds {', '.join(map(str, kinds))}, not {_ARCHITECTURE}.\n"
            f"Point models.{spec.role}.source at an image-text matching BLIP, such as Salesforce/blip-itm-base-coco, or use models=tiny"
        )
    return config


def _assemble(folder: Path, config: dict[str, Any], dtype: str) -> Any:
    """Skeleton on the meta device + tensors of the file(s); the positions' numbers, which not every file has, are counted again."""
    import torch
    from safetensors.torch import load_file
    from transformers import BlipConfig, BlipForImageTextRetrieval

    from fgvr.runtime.loaders.tensors import torch_dtype

    with torch.device("meta"):
        module = BlipForImageTextRetrieval(BlipConfig(**config))
    state = {}
    for file in files.weight_files(folder):
        for name, tensor in load_file(file).items():
            if not name.endswith("position_ids"):
                state[name] = tensor.to(torch_dtype(dtype)) if tensor.is_floating_point() else tensor
    complete.fill(module, state, folder)
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if leaf != "position_ids":
            raise ModelLoadError(f"{folder}: {name} is in neither the file nor our rules; please report this model")
        counted = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
        module.get_submodule(owner).register_buffer(leaf, counted, persistent=False)
    return module


LOADER = BlipLoader()
