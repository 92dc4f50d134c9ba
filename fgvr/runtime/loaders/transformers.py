"""Multimodal models of any family of transformers, from `from_pretrained` folders: `tiny`, a folder, or a hub repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.conversation import Conversation
from fgvr.runtime.devices.base import Device
from fgvr.runtime.loaders import complete, families, files, quantized
from fgvr.runtime.loaders.folders import FolderLoader
from fgvr.runtime.loaders.transformers_mllm import TransformersMLLM, require_decoder
from fgvr.runtime.sizes import general, qwen
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.types import ModelSpec

if TYPE_CHECKING:
    from fgvr.runtime.loaders.chat_processor import ChatProcessor

_FIRST_NAME = "qwen"  # of this loader: fingerprints hold it, so caches and bases made under it stay valid
_COMPUTED = ("inv_freq", "position_ids")  # buffers that a module computes itself; some old folders hold them as well


class TransformersLoader(FolderLoader):
    """Loader for role `mllm`."""

    needed = (
        "config.json",
        "*.safetensors",
        "tokenizer.json|vocab.json|tokenizer.model",
        "preprocessor_config.json|processor_config.json",
    )
    converses = quantizes = offloads = True
    libraries = ("transformers:AutoProcessor", "transformers:AutoModelForImageTextToText")

    def read_config(self, spec: ModelSpec, folder: Path) -> dict[str, Any]:
        config = families.read_config(folder)
        quantized.refuse_quantized_folder(config, folder)
        if config["model_type"] == qwen.FAMILY:
            qwen.require_sizes(folder, config)
        return config

    def describe_family(self, config: Mapping[str, Any]) -> str:
        return f"{complete.family(config)}, {families.support(config)}"

    def footprint(self, spec: ModelSpec, device: type[Device]) -> Footprint:
        folder = self.locate(spec)
        config = self.read_config(spec, folder) if folder is not None and (folder / "config.json").is_file() else None
        if config is None or config["model_type"] == qwen.FAMILY:
            return qwen.footprint(spec, folder, device)
        return general.footprint(spec, folder, config, device)

    def most_pixels(self, spec: ModelSpec) -> int:
        folder = self.locate(spec)
        config = files.read_config(folder / "config.json") if folder is not None and (folder / "config.json").is_file() else {}
        return families.most_pixels(spec, folder, config.get("model_type"))

    def fingerprint(self, spec: ModelSpec) -> str:
        return super().fingerprint(replace(spec, loader=_FIRST_NAME))

    def fingerprint_extra(self, spec: ModelSpec, folder: Path) -> Any:
        pixels = families.max_pixels(spec, folder, families.read_config(folder)["model_type"])
        return (pixels, quantized.kind_of(spec.quantization).recipe) if spec.quantization else pixels

    def open_processor(self, spec: ModelSpec, folder: Path) -> ChatProcessor:
        """Pads on the left, and scales pictures down to the cap in force."""
        import transformers

        from fgvr.runtime.loaders.chat_processor import ChatProcessor, Limit, smart_tokens

        config = self.read_config(spec, folder)
        getattr(transformers, str(families.class_of(config["model_type"])))  # its modules are imported before anything is measured
        try:
            processor = families.open_processor(folder, config["model_type"])
        except ImportError as error:  # SmolVLM's asks for num2words
            raise ModelLoadError(f"{folder}: the processor of {complete.family(config)} needs another package: {error}") from error
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        profile, pixels = families.PROFILES.get(config["model_type"]), families.max_pixels(spec, folder, config["model_type"])
        if profile is not None and pixels is not None:
            profile.limit_pixels(processor.image_processor, pixels)
        context = Limit(qwen.context(spec, folder), f"{spec.source}'s context")
        if profile is not None and profile.resizes_smartly:
            return ChatProcessor(processor, context, image_tokens=smart_tokens(processor.image_processor))
        return ChatProcessor(processor, context, max_pixels=pixels if profile is None else None)

    def build(self, spec: ModelSpec, folder: Path, config: dict[str, Any], dtype: str, device: Device) -> Any:
        from transformers import AutoModelForImageTextToText

        from fgvr.runtime.loaders import offloading, tensors

        def load(**options: Any) -> Any:
            with tensors.quiet_bars():
                loaded: Any = AutoModelForImageTextToText.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True, **options
                )
            module, told = loaded
            faults = {kind: told.get(f"{kind}_keys") or () for kind in ("missing", "unexpected", "mismatched")}
            faults["unexpected"] = [name for name in faults["unexpected"] if not str(name).endswith(_COMPUTED)]
            complete.refuse_incomplete(folder, f"{type(module).__name__}, as which {complete.family(config)} is loaded", **faults)
            return module

        # Without values, so that what does not fit is named before memory is taken.
        skeleton = load(device_map="meta", ignore_mismatched_sizes=True)
        require_decoder(folder, type(skeleton))
        read = partial(load, dtype=tensors.torch_dtype(dtype))
        if spec.offloaded:
            return offloading.load(read, skeleton, spec.offloaded, device)
        if not spec.quantization:
            return read()
        module = read(**quantized.options(spec.quantization, dtype, device, quantized.kept(skeleton)))
        quantized.keep_layout(module)
        return module

    def load(self, spec: ModelSpec, device: Device) -> TransformersMLLM:
        if spec.quantization:
            quantized.require(spec.quantization, device)
        opened = self.open(spec, device)
        fingerprint = self.fingerprint(spec)
        return TransformersMLLM(fingerprint, opened.module, opened.processor, spec.batch_size, quantized=bool(spec.quantization))

    def check_prompt(self, spec: ModelSpec, ask: Conversation) -> None:
        prompts, _ = self.prepare(spec)
        prompts.check(ask, spec.batch_size)


LOADER = TransformersLoader()
