"""Qwen2.5-VL from `from_pretrained` folders: `tiny`, a folder, or a hub repository.

Prompts are one user turn, images before the text, after a system turn if there is one. Batches are padded on the left. Not safe for two
calls at a time on one copy (generation keeps positions on the module); the pool lets one in at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.loaders import complete, files, libraries, processor_cache, quantized
from fgvr.runtime.loaders.prompt_limits import PromptLimit
from fgvr.runtime.sizes.footprint import Footprint
from fgvr.runtime.sizes.qwen import CLASS, PROMPT_TOKENS, SCORING_BYTES, context, footprint, max_pixels, read_config
from fgvr.types import ModelSpec, Picture, Reply, Scores

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike
    from fgvr.runtime.conversation import Answer, Conversation, Watch
    from fgvr.runtime.devices.base import Device
    from fgvr.runtime.loaders.base import Movable

    Images = Sequence[ImageLike | Sequence[ImageLike]]

NEEDED = ("config.json", "*.safetensors", "tokenizer.json|vocab.json", "preprocessor_config.json|processor_config.json")
_SHAPES = "mismatch"  # of transformers' error for tensors of other shapes
_PIXELS_PER_TOKEN = 28 * 28
_CHARACTERS_PER_TOKEN = 3  # English has four: an estimate that errs on the long side
_TEMPLATE = 32  # tokens of the chat template


class QwenLoader:
    """Loader for role `mllm`."""

    converses = True

    def check(self, spec: ModelSpec) -> None:
        folder = files.require(spec, NEEDED)
        if folder is not None:
            read_config(folder)

    def footprint(self, spec: ModelSpec, device: str = "cpu") -> Footprint:
        return footprint(spec, device)

    def estimate(self, spec: ModelSpec) -> int:
        return footprint(spec).weight_bytes

    def work_bytes(self, spec: ModelSpec) -> int:
        """The widest moment of a batch; see sizes/qwen.py."""
        return footprint(spec).work_bytes

    def fingerprint(self, spec: ModelSpec) -> str:
        folder = files.fetch(spec, NEEDED)
        pixels = max_pixels(spec, folder)
        extra = (pixels, quantized.kind_of(spec.quantization).recipe) if spec.quantization else pixels
        return files.folder_fingerprint(spec, folder, extra=extra)

    def logit_scale(self, spec: ModelSpec) -> float:
        raise ConfigError(f"{spec.source} is an MLLM: it has no logit scale")

    def load(self, spec: ModelSpec, device: Device) -> QwenMLLM:
        if spec.quantization:
            quantized.require(spec.quantization, device.name)
        folder = files.fetch(spec, NEEDED)
        read_config(folder)
        weights = files.read_weights(files.weight_files(folder))
        libraries.bring_in("qwen")
        from transformers import Qwen2_5_VLForConditionalGeneration

        from fgvr.runtime.loaders import optimize_layers, tensors

        tensors.set_threads()
        dtype = files.resolve_dtype(spec.dtype, weights)
        options: dict[str, Any] = {"dtype": tensors.torch_dtype(dtype), "local_files_only": True, "output_loading_info": True}
        if spec.quantization:
            options |= quantized.options(spec.quantization, dtype, device)
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
        module = tensors.freeze(module)
        if spec.quantization:
            quantized.keep_layout(module)
        else:
            optimize_layers.optimize(module, device)
        limit = self.prompt_limit(spec)
        return QwenMLLM(self.fingerprint(spec), module, self.prepare(spec), limit, quantized=bool(spec.quantization))

    def prompt_limit(self, spec: ModelSpec) -> PromptLimit:
        """What the model's context allows."""
        folder = files.fetch(spec, NEEDED)
        return PromptLimit(context(spec, folder), f"{spec.source}'s context", max_pixels(spec, folder))

    def check_prompt(self, spec: ModelSpec, ask: Conversation) -> None:
        """For servers: raises ConfigError also for what the memory plan does not reckon with. Nothing is loaded but the tokenizer."""
        limit = self.prompt_limit(spec)
        planned = max(1, spec.batch_size) * (limit.pixels // _PIXELS_PER_TOKEN + PROMPT_TOKENS)
        if planned < limit.tokens:
            limit = replace(limit, tokens=planned, why=f"a batch in the memory plan (models.mllm.batch_size={spec.batch_size})")
        processor, lock = self.prepare(spec), processor_cache.lock_of(self.fingerprint(spec))
        text = processor.apply_chat_template(_turns(ask), add_generation_prompt=True, tokenize=False)
        with lock:
            limit.check(text, _images(ask), ask.sampling.max_new_tokens, lambda text: processor.tokenizer(text).input_ids)

    def prepare(self, spec: ModelSpec) -> Any:
        """Its processor; kept."""
        folder = files.fetch(spec, NEEDED)

        def make() -> Any:
            from transformers import AutoProcessor

            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            processor.tokenizer.padding_side = "left"
            size = dict(processor.image_processor.size)
            size["longest_edge"] = max_pixels(spec, folder)
            processor.image_processor.size = size
            return processor

        return processor_cache.once(self.fingerprint(spec), make)


class QwenMLLM:
    """protocols.MLLM on one batch per call."""

    def __init__(self, fingerprint: str, module: Any, processor: Any, limit: PromptLimit, *, quantized: bool = False) -> None:
        from fgvr.runtime.loaders.tensors import module_bytes

        self.fingerprint = fingerprint
        self.nbytes = module_bytes(module)
        self.movable: Movable | None = None
        self._module, self._processor, self._quantized, self._limit = module, processor, quantized, limit
        self._claim: Any = None
        self._tokenizer, self._tokenizer_lock = processor.tokenizer, processor_cache.lock_of(fingerprint)
        self._end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._recommended = module.generation_config
        stops = self._recommended.eos_token_id
        self._stops: list[int] = sorted({self._end, *(stops if isinstance(stops, list) else [stops] if stops is not None else [])})

        self._pixels = int(processor.image_processor.size["longest_edge"])  # of an image at most
        self.tokens_per_item = self._pixels // _PIXELS_PER_TOKEN + PROMPT_TOKENS

    def lengths(self, images: Images, prompts: Sequence[str], system: str) -> list[int]:
        """Tokens of each prompt with its images, about: nothing is tokenised for it."""
        found = []
        for item, prompt in zip(images, prompts, strict=True):
            sides = [_pil(image).size for image in (item if isinstance(item, Sequence) else [item])]
            seen = sum(min(width * height, self._pixels) // _PIXELS_PER_TOKEN for width, height in sides)
            found.append(seen + (len(prompt) + len(system)) // _CHARACTERS_PER_TOKEN + _TEMPLATE)
        return found

    def place(self, device: Device) -> None:
        from fgvr.runtime.loaders import flat_weights

        if not self._quantized:
            self.movable = flat_weights.place(self._module, device)
        elif (allocate := getattr(device, "allocate", None)) is not None:  # loaded on its device, where it stays; a simulated one counts
            self._claim = allocate(self.nbytes)

    def generate(self, images: Images, prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128) -> list[Reply]:
        import torch
        from transformers import GenerationConfig

        if not prompts:
            return []
        inputs = self.inputs(images, prompts, system, max_new_tokens)
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self._stops, pad_token_id=self._tokenizer.pad_token_id
        )
        # What is not set here would come from the model's own configuration: sampling and a repetition penalty are not greedy.
        self._module.generation_config = greedy
        with torch.inference_mode():
            sequences = self._module.generate(**inputs, generation_config=greedy)
        asked = inputs["attention_mask"].sum(1).tolist()
        answers = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._reply(tokens, count) for tokens, count in zip(answers, asked, strict=True)]

    def score(self, images: Images, prompts: Sequence[str], continuations: Sequence[Sequence[str]], *, system: str = "") -> list[Scores]:
        """The prompt of each item is computed once; its cache is then shared by all continuations."""
        import torch

        from fgvr.runtime.loaders.scoring import continue_prefix, prefill

        if not prompts:
            return []
        inputs = self.inputs(images, prompts, system)
        with self._tokenizer_lock:
            tokens = [
                [[*self._tokenizer(text, add_special_tokens=False).input_ids, self._end] for text in texts] for texts in continuations
            ]
        with torch.inference_mode():
            prefix = prefill(self._module, inputs)
            likelihoods = continue_prefix(self._module, prefix, tokens, pad=self._tokenizer.pad_token_id, limit=SCORING_BYTES)
        asked = inputs["attention_mask"].sum(1).tolist()
        return [
            Scores(tuple(sums), tuple(map(len, candidates)), count)
            for sums, candidates, count in zip(likelihoods, tokens, asked, strict=True)
        ]

    def converse(self, asks: Sequence[Conversation], watch: Watch) -> list[Answer]:
        """runtime.conversation.Conversing; greedy answers are those of `generate`."""
        import torch

        from fgvr.runtime.loaders.decoding import decode

        if not asks:
            return []
        texts = [self._processor.apply_chat_template(_turns(ask), add_generation_prompt=True, tokenize=False) for ask in asks]
        groups = [_images(ask) for ask in asks]
        inputs = self._encode(texts, groups, max(a.sampling.max_new_tokens for a in asks))
        with torch.inference_mode():
            return decode(self._module, inputs, [a.sampling for a in asks], self._tokenizer, self._stops, watch)

    def inputs(self, images: Images, prompts: Sequence[str], system: str = "", new_tokens: int = 0) -> dict[str, Any]:
        """What the module takes for these prompts: left-padded ids, mask, pixels, grids, token kinds; on the module's device."""
        groups = [[_pil(i) for i in group] if isinstance(group, Sequence) else [_pil(group)] for group in images]
        texts = [self.prompt_text(len(group), prompt, system) for group, prompt in zip(groups, prompts, strict=True)]
        return self._encode(texts, groups, new_tokens)

    def _encode(self, texts: Sequence[str], groups: Sequence[Sequence[Any]], new_tokens: int) -> dict[str, Any]:
        """Raises ConfigError for a prompt that is longer than the model's context."""
        flat = [image for group in groups for image in group]
        with self._tokenizer_lock:
            for text, group in zip(texts, groups, strict=True):
                self._limit.check(text, group, new_tokens, lambda text: self._tokenizer(text).input_ids)
            encoded = self._processor(text=list(texts), images=list(flat) or None, padding=True, return_tensors="pt")
        inputs = dict(encoded.to(self._module.device))
        if "mm_token_type_ids" not in inputs:
            inputs["mm_token_type_ids"] = inputs["input_ids"].new_zeros(inputs["input_ids"].shape)
        return inputs

    def prompt_text(self, images: int, prompt: str, system: str = "") -> str:
        """The chat template's text up to where the answer begins."""
        turns: list[dict[str, Any]] = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        turns.append({"role": "user", "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": prompt}]})
        return self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def _reply(self, tokens: list[int], prompt_tokens: int) -> Reply:
        stop = next((i for i, token in enumerate(tokens) if token in self._stops), None)
        answer = tokens if stop is None else tokens[:stop]
        text = self._tokenizer.decode(answer, skip_special_tokens=True).strip()
        return Reply(text, prompt_tokens=prompt_tokens, new_tokens=len(answer) + (stop is not None))


def _turns(ask: Conversation) -> list[dict[str, Any]]:
    """As the chat template reads them."""
    return [
        {"role": turn.role, "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.parts]}
        for turn in ask.turns
    ]


def _images(ask: Conversation) -> list[Any]:
    return [part.image for turn in ask.turns for part in turn.parts if isinstance(part, Picture)]


def _pil(image: Any) -> Any:
    return image.image if isinstance(image, Picture) else image


LOADER = QwenLoader()
