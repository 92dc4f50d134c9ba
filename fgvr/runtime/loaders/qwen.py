"""Qwen2.5-VL from `from_pretrained` folders: `tiny`, a folder, or a hub repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import complete, quantized
from fgvr.runtime.loaders.folders import FolderLoader
from fgvr.runtime.loaders.prompt_limits import PIXELS_PER_TOKEN, PromptLimit
from fgvr.runtime.sizes import qwen as sizes
from fgvr.runtime.sizes.qwen import CLASS, PROMPT_TOKENS
from fgvr.types import ModelSpec

if TYPE_CHECKING:
    from fgvr.runtime.conversation import Conversation
    from fgvr.runtime.devices.base import Device
    from fgvr.runtime.loaders.qwen_mllm import QwenMLLM
    from fgvr.runtime.sizes.footprint import Footprint

_SHAPES = "mismatch"  # of transformers' error for tensors of other shapes


class QwenLoader(FolderLoader):
    """Loader for role `mllm`."""

    needed = ("config.json", "*.safetensors", "tokenizer.json|vocab.json", "preprocessor_config.json|processor_config.json")
    converses = quantizes = offloads = True
    libraries = ("transformers:AutoProcessor", f"transformers:{CLASS}", "transformers:Qwen2_5_VLProcessor")

    def read_config(self, spec: ModelSpec, folder: Path) -> dict[str, Any]:
        return sizes.read_config(folder)

    def footprint(self, spec: ModelSpec, device: type[Device]) -> Footprint:
        return sizes.footprint(spec, self.locate(spec), device)

    def fingerprint_extra(self, spec: ModelSpec, folder: Path) -> Any:
        pixels = sizes.max_pixels(spec, folder)
        return (pixels, quantized.kind_of(spec.quantization).recipe) if spec.quantization else pixels

    def open_processor(self, spec: ModelSpec, folder: Path) -> Any:
        """Pads on the left, and scales pictures down to the cap in force."""
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        processor.tokenizer.padding_side = "left"
        processor.image_processor.size = dict(processor.image_processor.size) | {"longest_edge": sizes.max_pixels(spec, folder)}
        return processor

    def build(self, spec: ModelSpec, folder: Path, config: dict[str, Any], dtype: str, device: Device) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        from fgvr.runtime.loaders import offloading, tensors

        options: dict[str, Any] = {"dtype": tensors.torch_dtype(dtype), "local_files_only": True, "output_loading_info": True}
        if spec.quantization:
            options |= quantized.options(spec.quantization, dtype, device)
        if spec.offloaded:
            skeleton = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, device_map="meta", local_files_only=True)
            options |= offloading.options(skeleton, spec.offloaded, device)
        try:
            with tensors.quiet_bars():
                loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, **options)
        except RuntimeError as error:
            if _SHAPES not in str(error):  # out of memory is the pool's to mend
                raise
            raise ModelLoadError(
                f"{folder}: its tensors have other shapes than config.json says; get the folder again ({error})"
            ) from error
        module, told = loaded
        told = {kind: told.get(f"{kind}_keys") or () for kind in ("missing", "unexpected", "mismatched")}
        complete.refuse_incomplete(folder, CLASS, **told)
        if spec.quantization:
            quantized.keep_layout(module)
        return module

    def load(self, spec: ModelSpec, device: Device) -> QwenMLLM:
        if spec.quantization:
            quantized.require(spec.quantization, device)
        opened = self.open(spec, device)
        from fgvr.runtime.loaders.qwen_mllm import QwenMLLM

        limit, is_quantized = self.prompt_limit(spec), bool(spec.quantization)
        return QwenMLLM(self.fingerprint(spec), opened.module, opened.processor, opened.lock, limit, quantized=is_quantized)

    def prompt_limit(self, spec: ModelSpec) -> PromptLimit:
        """What the model's context allows."""
        folder = self.fetch(spec)
        return PromptLimit(sizes.context(spec, folder), f"{spec.source}'s context", sizes.max_pixels(spec, folder))

    def check_prompt(self, spec: ModelSpec, ask: Conversation) -> None:
        from fgvr.runtime.loaders.qwen_mllm import chat

        limit = self.prompt_limit(spec)
        planned = max(1, spec.batch_size) * (limit.pixels // PIXELS_PER_TOKEN + PROMPT_TOKENS)
        if planned < limit.tokens:
            limit = replace(limit, tokens=planned, why=f"a batch in the memory plan (models.mllm.batch_size={spec.batch_size})")
        processor, lock = self.prepare(spec)
        text = chat(processor, ask)
        with lock:
            limit.check(text, ask.images, ask.sampling.max_new_tokens, lambda text: processor.tokenizer(text).input_ids)


LOADER = QwenLoader()
