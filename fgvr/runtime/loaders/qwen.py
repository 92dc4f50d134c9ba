"""Qwen2.5-VL from `from_pretrained` folders: `tiny`, a folder, or a hub repository.

Prompts are one user turn, images before the text, after a system turn if there is one. Batches are padded on the left. Not safe for two
calls at a time on one copy (generation keeps positions on the module); the pool's face lets one in at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.errors import ConfigError, ModelLoadError
from fgvr.runtime.loaders import files
from fgvr.runtime.loaders.base import SANE_PIXELS
from fgvr.types import ModelSpec, Picture, Reply, Scores

if TYPE_CHECKING:
    from fgvr.protocols import ImageLike
    from fgvr.runtime.devices.base import Device

    Images = Sequence[ImageLike | Sequence[ImageLike]]

NEEDED = ("config.json", "*.safetensors", "tokenizer.json|vocab.json", "preprocessor_config.json|processor_config.json")
_PARAMETERS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
}
_TEXT_TOKENS = 768  # prompt and answer beside the image, for working memory
_SCORING_BYTES = 1 << 30  # cap on the copies of the key-value cache, and on the logits, of one scoring pass
_SHARE = {"int8": 0.62, "int4": 0.40}  # of 16-bit weights; vision tower, embeddings and head stay


class QwenLoader:
    """Loader for role `mllm`."""

    def check(self, spec: ModelSpec) -> None:
        files.require(spec, NEEDED)

    def estimate(self, spec: ModelSpec) -> int:
        folder = files.locate(spec)
        shards = files.weight_files(folder) if folder else []
        if shards:
            weights = files.read_weights(shards)
            if spec.quantization:
                return int(weights.values * 2 * _SHARE[spec.quantization])
            return weights.bytes_as(spec.dtype)
        if folder is not None and (folder / "config.json").is_file():
            parameters = count_parameters(files.read_config(folder / "config.json"))
        elif spec.source in _PARAMETERS:
            parameters = _PARAMETERS[spec.source]
        else:
            files.require(spec, NEEDED)
            raise ModelLoadError(
                f"the size of {spec.source!r} is unknown until it is on this machine: huggingface-cli download {spec.source}"
            )
        if spec.quantization:
            return int(parameters * 2 * _SHARE[spec.quantization])
        return parameters * files.DTYPE_BYTES.get(spec.dtype, 2)

    def work_bytes(self, spec: ModelSpec) -> int:
        """Key-value cache, widest activations of a prefill, patches of the vision tower, and the copies scoring makes."""
        folder = files.locate(spec)
        known = folder is not None and (folder / "config.json").is_file()
        config = files.read_config(folder / "config.json") if known and folder else {}
        text, vision = _text_config(config), config.get("vision_config", {})
        layers, hidden = text.get("num_hidden_layers", 28), text.get("hidden_size", 3584)
        heads = text.get("num_attention_heads", 28)
        width = hidden // heads * text.get("num_key_value_heads", 4)
        pixels = max_pixels(spec, folder)
        patches = pixels // vision.get("patch_size", 14) ** 2
        tokens = patches // vision.get("spatial_merge_size", 2) ** 2 + _TEXT_TOKENS
        small = folder is not None and sum(f.stat().st_size for f in files.weight_files(folder)) in range(1, files.HASH_WHOLE)
        size = 4 if small or spec.dtype == "float32" else 2
        cache = tokens * 2 * layers * width * size
        prefill = tokens * (6 * hidden + 2 * text.get("intermediate_size", 18944)) * size
        tower = patches * (8 * vision.get("hidden_size", 1280) + 2 * vision.get("intermediate_size", 3420)) * size + pixels * 24
        return spec.batch_size * (cache + prefill + tower) + min(_SCORING_BYTES, spec.batch_size * 8 * cache)

    def fingerprint(self, spec: ModelSpec) -> str:
        folder = files.fetch(spec, NEEDED)
        return files.folder_fingerprint(spec, folder, extra=max_pixels(spec, folder))

    def logit_scale(self, spec: ModelSpec) -> float:
        raise ConfigError(f"{spec.source} is an MLLM: it has no logit scale")

    def load(self, spec: ModelSpec, device: Device) -> QwenMLLM:
        folder = files.fetch(spec, NEEDED)
        weights = files.read_weights(files.weight_files(folder))
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        from fgvr.runtime.loaders import tensors

        tensors.set_threads()
        dtype = files.resolve_dtype(spec.dtype, weights)
        options: dict[str, Any] = {"dtype": tensors.torch_dtype(dtype), "local_files_only": True}
        if spec.quantization:
            options |= {"quantization_config": _quantization(spec.quantization), "device_map": device.torch_name}
        with tensors.quiet_bars():
            module = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, **options)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        processor.tokenizer.padding_side = "left"
        size = dict(processor.image_processor.size)
        size["longest_edge"] = max_pixels(spec, folder)
        processor.image_processor.size = size
        return QwenMLLM(self.fingerprint(spec), tensors.freeze(module), processor, movable=not spec.quantization)


class QwenMLLM:
    """protocols.MLLM on one batch per call."""

    def __init__(self, fingerprint: str, module: Any, processor: Any, *, movable: bool = True) -> None:
        from fgvr.runtime.loaders.tensors import module_bytes

        self.fingerprint = fingerprint
        self.nbytes = module_bytes(module)
        self._module, self._processor, self._movable = module, processor, movable
        self._tokenizer = processor.tokenizer
        self._end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._recommended = module.generation_config
        stops = self._recommended.eos_token_id
        self._stops = sorted({self._end, *(stops if isinstance(stops, list) else [stops] if stops is not None else [])})

    def place(self, device: Device) -> None:
        from fgvr.runtime.loaders.tensors import move

        if self._movable:
            move(self._module, device)

    def generate(self, images: Images, prompts: Sequence[str], *, system: str = "", max_new_tokens: int = 128) -> list[Reply]:
        import torch
        from transformers import GenerationConfig

        if not prompts:
            return []
        inputs = self.inputs(images, prompts, system)
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
        tokens = [[[*self._tokenizer(text, add_special_tokens=False).input_ids, self._end] for text in texts] for texts in continuations]
        with torch.inference_mode():
            prefix = prefill(self._module, inputs)
            likelihoods = continue_prefix(self._module, prefix, tokens, pad=self._tokenizer.pad_token_id, limit=_SCORING_BYTES)
        asked = inputs["attention_mask"].sum(1).tolist()
        return [
            Scores(tuple(sums), tuple(map(len, candidates)), count)
            for sums, candidates, count in zip(likelihoods, tokens, asked, strict=True)
        ]

    def inputs(self, images: Images, prompts: Sequence[str], system: str = "") -> dict[str, Any]:
        """What the module takes for these prompts: left-padded ids, mask, pixels, grids, token kinds; on the module's device."""
        groups = [[_pil(i) for i in group] if isinstance(group, Sequence) else [_pil(group)] for group in images]
        texts = [self.prompt_text(len(group), prompt, system) for group, prompt in zip(groups, prompts, strict=True)]
        flat = [image for group in groups for image in group]
        encoded = self._processor(text=texts, images=flat or None, padding=True, return_tensors="pt")
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


def max_pixels(spec: ModelSpec, folder: Path | None) -> int:
    """The cap in force: the spec's, else the file's but never above 1,280 vision tokens (an uncapped photo once asked for 37 GiB)."""
    if spec.max_pixels is not None:
        return spec.max_pixels
    for name in ("preprocessor_config.json", "processor_config.json"):
        if folder is not None and (folder / name).is_file():
            config = files.read_config(folder / name)
            config = config.get("image_processor", config)
            longest = config.get("max_pixels") or (config.get("size") or {}).get("longest_edge")
            if longest:
                return min(int(longest), SANE_PIXELS)
    return SANE_PIXELS


def count_parameters(config: dict[str, Any]) -> int:
    """Parameters of a Qwen2.5-VL by its config.json, flat or nested; exact."""
    text, vision = _text_config(config), config["vision_config"]
    hidden, layers, inner = text["hidden_size"], text["num_hidden_layers"], text["intermediate_size"]
    keys = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    layer = 2 * hidden * hidden + hidden + 2 * (hidden * keys + keys) + 3 * hidden * inner + 2 * hidden
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    words = text["vocab_size"] * hidden * (1 if tied else 2)
    width, mlp, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    block = 4 * width * width + 4 * width + 3 * width * mlp + 2 * mlp + width + 2 * width
    patch = vision.get("in_chans", vision.get("in_channels", 3)) * vision["temporal_patch_size"] * vision["patch_size"] ** 2 * width
    merger = width + merged * merged + merged + merged * out + out
    return layers * layer + words + hidden + vision["depth"] * block + patch + merger


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config") or config


def _quantization(kind: str) -> Any:
    """bitsandbytes; the vision tower and the head stay as they are. Names are matched from a module's start, hence `model.visual`."""
    from transformers import BitsAndBytesConfig

    kept = ["model.visual", "lm_head"]
    try:
        if kind == "int4":
            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=kept)
        if kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    except ImportError as error:
        raise ModelLoadError(f"quantization={kind} needs bitsandbytes: pip install 'fgvr[quant]'") from error
    raise ModelLoadError(f"quantization={kind!r} is not known; known are {', '.join(_SHARE)}")


def _pil(image: Any) -> Any:
    return image.image if isinstance(image, Picture) else image


LOADER = QwenLoader()
