"""CLIP-like encoders from open_clip folders: `open_clip_config.json`, `open_clip_model.safetensors`, tokenizer files.

Sources: `tiny`, a folder, a hub repository in that format, or open_clip's own "ViT-B-32/openai". The skeleton is built on the meta device
and the file's tensors are assigned to it: 27 times faster than building, initialising and copying.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import complete, files, processor_cache
from fgvr.runtime.sizes.clip import CONFIG, TEXTS, WEIGHTS, footprint, repository
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec, Picture

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike
    from fgvr.runtime.devices.base import Device
    from fgvr.runtime.loaders.base import Movable

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")


class ClipLoader:
    """Loader for role `encoder`."""

    def check(self, spec: ModelSpec) -> None:
        folder = files.require(spec, (CONFIG, WEIGHTS), _repository(spec))
        if folder is not None:
            _read_config(folder)

    def locate(self, spec: ModelSpec) -> Path | None:
        """Its folder; open_clip knows where some names lie."""
        return files.locate(spec, _repository(spec))

    def footprint(self, spec: ModelSpec, device: str = "cpu") -> Footprint:
        return footprint(spec, device)

    def estimate(self, spec: ModelSpec) -> int:
        return footprint(spec).weight_bytes

    def work_bytes(self, spec: ModelSpec) -> int:
        """The widest moment of a batch; see sizes/clip.py."""
        return footprint(spec).work_bytes

    def fingerprint(self, spec: ModelSpec) -> str:
        return files.folder_fingerprint(spec, files.fetch(spec, (CONFIG, WEIGHTS), _repository(spec)))

    def logit_scale(self, spec: ModelSpec) -> float:
        """As the file has it, whatever the dtype computed in."""
        return math.exp(files.read_scalar(files.fetch(spec, (CONFIG, WEIGHTS), _repository(spec)) / WEIGHTS, "logit_scale"))

    def load(self, spec: ModelSpec, device: Device) -> ClipEncoder:
        folder = files.fetch(spec, (CONFIG, WEIGHTS), _repository(spec))
        from open_clip import transform

        from fgvr.runtime.loaders import clip_tower, optimize_layers, tensors

        tensors.set_threads()
        config = _read_config(folder)
        weights = files.read_weights([folder / WEIGHTS])
        dtype = files.resolve_dtype(spec.dtype, weights)
        assembled = _assemble(folder, config["model_cfg"], dtype)
        preprocess = transform.image_transform_v2(transform.PreprocessCfg(**config.get("preprocess_cfg", {})), is_train=False)
        module: Any = tensors.freeze(assembled)
        optimize_layers.optimize(module.visual, device, steady=True)
        optimize_layers.optimize(module, device)
        if device.optimize:
            clip_tower.spare_last_block(module.visual)
        return ClipEncoder(self.fingerprint(spec), self.logit_scale(spec), module, preprocess, self.prepare(spec))

    def prepare(self, spec: ModelSpec) -> Any:
        """Its tokenizer; kept."""
        folder = files.fetch(spec, (CONFIG, WEIGHTS), _repository(spec))

        def make() -> Any:
            import open_clip

            return open_clip.get_tokenizer(f"local-dir:{folder}")

        return processor_cache.once(self.fingerprint(spec), make)


class ClipEncoder:
    """protocols.Encoder on one batch per call. The forward pass keeps no state; the tokenizer has a lock."""

    def __init__(self, fingerprint: str, logit_scale: float, module: Any, preprocess: Any, tokenizer: Any) -> None:
        from fgvr.runtime.loaders.tensors import module_bytes

        self.fingerprint, self.logit_scale = fingerprint, logit_scale
        self.nbytes = module_bytes(module)
        self.movable: Movable | None = None
        self._module, self._preprocess, self._tokenizer = module, preprocess, tokenizer
        self._tokenizer_lock = processor_cache.lock_of(fingerprint)
        self._context = int(tokenizer.context_length)

    def place(self, device: Device) -> None:
        from fgvr.runtime.loaders import flat_weights

        self.movable = flat_weights.place(self._module, device)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        import torch

        if not images:
            return np.zeros((0, 0), np.float32)
        pixels = torch.stack([self._preprocess(i.image if isinstance(i, Picture) else i) for i in images])
        with torch.inference_mode():
            vectors = self._module.encode_image(pixels.to(self._weight.device, self._weight.dtype), normalize=False)
        return _unit(vectors.float().cpu().numpy())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, 0), np.float32)
        with self._tokenizer_lock:
            parts = [list(self._fitting(text)) for text in texts]
            tokens = self._tokenizer([piece for pieces in parts for piece in pieces])
        vectors = np.concatenate([self._text_vectors(tokens[i : i + TEXTS]) for i in range(0, len(tokens), TEXTS)])
        ends = np.cumsum([len(pieces) for pieces in parts])
        return _unit(np.stack([rows.mean(0) for rows in np.split(vectors, ends[:-1])]))

    @property
    def _weight(self) -> Any:
        """Any weight: its device and type are the module's."""
        return next(self._module.visual.parameters())

    def _text_vectors(self, tokens: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            vectors = self._module.encode_text(tokens.to(self._weight.device), normalize=False)
        return _unit(vectors.float().cpu().numpy())

    def _fitting(self, text: str) -> Iterator[str]:
        """The text, or its sentences when it is longer than the context; a sentence that is still too long is split by words."""
        if self._fits(text):
            yield text
            return
        for sentence in filter(None, _SENTENCE.split(text.strip())):
            yield from self._by_words(sentence)

    def _by_words(self, text: str) -> Iterator[str]:
        words = text.split()
        if self._fits(text) or len(words) < 2:  # one word beyond the context: the tokenizer may cut it
            yield text
            return
        middle = len(words) // 2
        yield from self._by_words(" ".join(words[:middle]))
        yield from self._by_words(" ".join(words[middle:]))

    def _fits(self, text: str) -> bool:
        """Counted by the tokenizer itself, start and end marks included."""
        inner = getattr(self._tokenizer, "tokenizer", None)
        cleaned = self._tokenizer.clean_fn(text)
        if inner is not None:
            return len(inner(cleaned, truncation=False, verbose=False).input_ids) <= self._context
        return len(self._tokenizer.encode(cleaned)) + 2 <= self._context


def _repository(spec: ModelSpec) -> str | None:
    """The hub repository behind open_clip's own names."""
    if (known := repository(spec)) is not None:
        return known
    architecture, _, tag = spec.source.partition("/")
    if not re.fullmatch(r"(ViT|RN|convnext|coca|EVA|SigLIP)[\w-]*", architecture) or not tag or Path(spec.source).exists():
        return None
    import open_clip

    return (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "").rstrip("/") or None


def _read_config(folder: Path) -> dict[str, Any]:
    """Raises ModelLoadError when it describes no encoder in open_clip's form."""
    config = files.read_config(folder / CONFIG)
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not {"vision_cfg", "text_cfg"} <= model.keys():
        raise ModelLoadError(f"{folder / CONFIG} has no model_cfg with vision_cfg and text_cfg: it is no encoder in open_clip's form")
    return config


def _assemble(folder: Path, model_cfg: dict[str, Any], dtype: str) -> Any:
    """Skeleton on the meta device + tensors of the file; what the skeleton computes itself (the causal mask) is computed again."""
    import open_clip
    import torch
    from safetensors.torch import load_file

    from fgvr.runtime.loaders.tensors import torch_dtype

    plain = not {"custom_text", "multimodal_cfg"} & set(model_cfg) and "timm_model_name" not in model_cfg["vision_cfg"]
    if not plain or "hf_model_name" in model_cfg["text_cfg"]:
        try:
            module = open_clip.create_model(f"local-dir:{folder}", load_weights=True)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):  # out of memory is the pool's to mend
                raise
            raise ModelLoadError(f"{folder}: weights and {CONFIG} do not belong together ({error}); get both again") from error
        return module.to(torch_dtype(dtype))
    try:
        with torch.device("meta"):
            module = open_clip.CLIP(**model_cfg)
    except TypeError as error:
        raise ModelLoadError(f"{folder / CONFIG} describes no CLIP that open_clip {open_clip.__version__} knows ({error})") from error
    state = {name: _cast(tensor, torch_dtype(dtype)) for name, tensor in load_file(folder / WEIGHTS).items()}
    complete.fill(module, state, folder)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            if leaf != "attn_mask":
                raise ModelLoadError(f"{folder}: {name} is in neither the file nor our rules; please report this model")
            mask = torch.full(buffer.shape, float("-inf"), dtype=torch_dtype(dtype)).triu_(1)
            module.get_submodule(owner).register_buffer(leaf, mask, persistent=False)
    return module


def _cast(tensor: Any, dtype: Any) -> Any:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


LOADER = ClipLoader()
