"""Multimodal models through mlx-vlm: Apple silicon, or Linux on the CPU. Any folder mlx-vlm reads, in its own or in hub form.

Weights in hub form are converted in memory, as they are loaded. MLX's arrays live in main memory, hence never on a CUDA device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.mlx_memory import INSTALL, MLX
from fgvr.runtime.loaders import complete, files
from fgvr.runtime.loaders.chat_processor import Limit
from fgvr.runtime.loaders.folders import FolderLoader
from fgvr.runtime.sizes.footprint import total
from fgvr.runtime.sizes.qwen import KNOWN, PROMPT_TOKENS, Batch, Dimensions, context, find_dimensions, max_pixels, read_dimensions, work
from fgvr.types import ModelSpec

_COMMUNITY = re.compile(r"mlx-community/(Qwen2\.5-VL-(?:3|7|32|72)B-Instruct)-(?:bf16|(\d)bit)")
_SCALES = 4 / 64  # bytes per value for a 16-bit scale and bias per group of 64; conversions leave the vision tower at 16 bits
_TEXT_KEYS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "inner": "intermediate_size",
    "vocabulary": "vocab_size",
}


class MlxLoader(FolderLoader):
    """Loader for role `mllm`. It computes one prompt at a time, whatever the batch size; the continuations of one prompt go together."""

    needed = ("config.json", "*.safetensors", "tokenizer.json|vocab.json|tokenizer.model")
    libraries = ("mlx_vlm",)

    def check(self, spec: ModelSpec) -> None:
        if find_spec("mlx") is None or find_spec("mlx_vlm") is None:
            raise ModelLoadError(f"{spec.role}: the mlx loader needs mlx and mlx-vlm (Apple silicon or Linux).\n{INSTALL}")
        _refuse_quantization(spec)
        super().check(spec)

    def describe_family(self, config: Mapping[str, Any]) -> str:
        return (
            f"{complete.family(config)}, {'supported' if _has_module(config) else 'not named among the families of the installed mlx-vlm'}"
        )

    def estimate(self, spec: ModelSpec) -> int:
        _refuse_quantization(spec)
        folder = files.locate(spec)
        if folder is not None and (shards := files.weight_files(folder)):
            return files.read_weights(shards).bytes_as(spec.dtype)
        counts = _dimensions(spec, folder).counts()
        tower, values = counts["vision tower"], sum(counts.values())
        known = _COMMUNITY.fullmatch(spec.source)
        per_value = int(known[2]) / 8 + _SCALES if known and known[2] else files.DTYPE_BYTES.get(spec.dtype, 2)
        return int(2 * tower + (values - tower) * per_value)

    def work_bytes(self, spec: ModelSpec) -> int:
        """As Qwen2.5-VL's with one prompt at a time, and the logits of the whole prompt, which mlx-vlm computes where a score begins."""
        folder = files.locate(spec)
        shards = files.weight_files(folder) if folder else []
        dtype = files.resolve_dtype(spec.dtype, files.read_weights(shards)) if shards else spec.dtype
        shape, size, pixels = _dimensions(spec, folder), files.DTYPE_BYTES.get(dtype, 2), max_pixels(spec, folder)
        tokens = pixels // (shape.patch * shape.merge) ** 2 + PROMPT_TOKENS
        return total(work(shape, Batch(1, pixels, size))) + tokens * shape.vocabulary * size

    def fingerprint_extra(self, spec: ModelSpec, folder: Path) -> Any:
        return max_pixels(spec, folder)

    def read_config(self, spec: ModelSpec, folder: Path) -> dict[str, Any]:
        """Raises ModelLoadError for what mlx-vlm would misread or, worse, run."""
        config = files.read_config(folder / "config.json")
        if "model_file" in config:
            raise ModelLoadError(
                f"{folder} names Python code of its own (model_file in config.json), which mlx-vlm would run; remove the key"
            )
        if config.get("model_type") == "qwen2_5_vl" and "hidden_size" not in config:
            raise ModelLoadError(f"{folder}/config.json has the nested form of transformers 5; mlx-vlm reads the hub's flat form only")
        return config

    def prepare(self, spec: ModelSpec) -> None:
        """Nothing is made ahead: mlx-vlm's processors are replaced while it loads."""

    def load(self, spec: ModelSpec, device: Device) -> Any:
        self.check(spec)
        if device.has_own_memory:
            raise ModelLoadError(
                f"{spec.role}: MLX models live in main memory, not on {device.name}; runtime.device=mlx, or models/mllm=qwen2_5_vl_7b"
            )
        folder = self.fetch(spec)
        config = self.read_config(spec, folder)
        dtype = files.resolve_dtype(spec.dtype, files.read_weights(files.weight_files(folder)))
        core = MLX.begin()
        with _own_processors():
            from mlx_vlm.utils import load_model

            from fgvr.runtime.loaders.mlx_model import MlxMLLM, open_processor

            try:
                module = load_model(folder, lazy=True)
            except (
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
            ) as error:  # as mlx-vlm says that tensors or keys are missing or too many
                raise ModelLoadError(f"{folder} cannot be loaded by mlx-vlm as {complete.family(config)}: {error}") from error
            module.set_dtype(getattr(core, dtype))
            core.eval(module.parameters())  # arrays are lazy: only now the weights are read
            limit = Limit(context(spec, folder), f"{spec.source}'s context")
            prompts = open_processor(folder, config, module.config, max_pixels=max_pixels(spec, folder), limit=limit)
        return MlxMLLM(self.fingerprint(spec), module, prompts)


def _dimensions(spec: ModelSpec, folder: Path | None) -> Dimensions:
    """Of the folder, or of the published model. Other families: their language model beside a vision tower as large as Qwen's."""
    if folder is not None and (folder / "config.json").is_file():
        config = files.read_config(folder / "config.json")
        if config.get("model_type") == "qwen2_5_vl":
            return read_dimensions(config)
        text = config.get("text_config") or config.get("llm_config") or config
        known = {field: text[key] for field, key in _TEXT_KEYS.items() if isinstance(text.get(key), int)}
        return replace(KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"], **known)
    published = _COMMUNITY.fullmatch(spec.source)
    return find_dimensions(replace(spec, source=f"Qwen/{published[1]}") if published else spec, None)


def _has_module(config: Mapping[str, Any]) -> bool:
    """Whether mlx-vlm has a module of this model type. It also reads a few under other names, so this refuses nothing."""
    found = find_spec("mlx_vlm")
    return found is not None and (Path(str(found.origin)).parent / "models" / str(config.get("model_type")).lower()).is_dir()


def _refuse_quantization(spec: ModelSpec) -> None:
    if spec.quantization:
        raise ConfigError(
            f"models.mllm.quantization={spec.quantization}: an MLX folder brings its own. Take models.mllm.source="
            "mlx-community/Qwen2.5-VL-7B-Instruct-4bit, or make one: "
            "python -m mlx_vlm.convert --hf-path FOLDER --mlx-path NEW -q --q-bits 8"
        )


@contextmanager
def _own_processors() -> Iterator[None]:
    """mlx-vlm replaces `AutoProcessor.from_pretrained` for the whole process as its models are imported; PyTorch's loader must not see it.

    Called while nothing else is constructed (the pool's construct lock). What mlx-vlm installed is put back for its next load, as its
    modules install themselves only once.
    """
    from transformers import AutoProcessor

    global _processors
    before = vars(AutoProcessor)["from_pretrained"]
    if _processors is not None:
        AutoProcessor.from_pretrained = _processors
    try:
        yield
    finally:
        _processors = vars(AutoProcessor)["from_pretrained"]
        AutoProcessor.from_pretrained = before


_processors: Any = None  # AutoProcessor.from_pretrained as mlx-vlm has it

LOADER = MlxLoader()
