"""The tiny Qwen2.5-VL: its folder (flat hub-style configuration, own tokenizer) and a batched forward for training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, normalizers, pre_tokenizers
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from tiny import common

PATCH, MERGE = 14, 2
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_folder(folder: Path) -> Qwen2Tokenizer:
    """Everything but the weights: tokenizer, chat template, processor and model configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = common.train_bpe(660, [], pre_tokenizer=pre_tokenizers.Sequence([split, bytes_only]), normalizer=normalizers.NFC())
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIALS),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(), indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(_config(tokenizer), indent=2) + "\n")
    ends = {k: tokenizer.convert_tokens_to_ids(v) for k, v in {"eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}.items()}
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, **ends}, indent=2) + "\n")
    return tokenizer


def _preprocessor() -> dict:
    return {
        "min_pixels": 96 * 96,
        "max_pixels": 112 * 140,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [common.MEAN] * 3,
        "image_std": [common.STD] * 3,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _config(tokenizer: Qwen2Tokenizer) -> dict:
    """Flat, as on the hub: transformers and mlx-vlm both read it. Loaded as float32, though the file holds float16."""

    def number(token: str) -> int:
        return tokenizer.convert_tokens_to_ids(token)

    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": number("<|endoftext|>"),
        "eos_token_id": number("<|im_end|>"),
        "pad_token_id": number("<|endoftext|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
        "vision_token_id": number("<|vision_pad|>"),
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 4096,
        "max_window_layers": 4,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 5,
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": 128,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1, 2, 3, 4],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "vocab_size": len(tokenizer),
    }


def build(folder: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer]:
    """The untrained model and the tokenizer as the folder's own files define them."""
    tokenizer = write_folder(folder)
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    return Qwen2_5_VLForConditionalGeneration(config).float(), tokenizer


def export(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """float16 safetensors under the hub's names (`model.*`, `visual.*`; `lm_head` only where it is not the input's matrix)."""
    weights = {}
    for name, value in model.state_dict().items():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        if name != "lm_head.weight" or not model.config.tie_word_embeddings:
            weights[name] = value.detach().to(torch.float16).contiguous()
    scratch = folder / "model.part"
    save_file(weights, scratch, metadata={"format": "pt"})
    scratch.chmod(0o644)
    shutil.move(scratch, folder / "model.safetensors")


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """float32 [n, 3, h, w] to [n, h * w / 196, 588] in Qwen's order: 2 x 2 merge blocks together, channel first."""
    n, c, h, w = pixels.shape
    block = PATCH * MERGE
    x = pixels.view(n, c, h // block, MERGE, PATCH, w // block, MERGE, PATCH)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(n, -1, c * PATCH * PATCH)


def look(visual: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The vision tower on same-sized pictures at once: [n, 3, h, w] to merged tokens [n, h * w / 784, width]."""
    weight = visual.patch_embed.proj.weight  # a still picture fills both temporal slices
    x = patches(pixels) @ weight.sum(2).flatten(1).T
    grid = torch.tensor([[1, pixels.shape[2] // PATCH, pixels.shape[3] // PATCH]], device=pixels.device)
    cos, sin = visual.rotary_pos_emb(x, get_vision_position_ids(grid, MERGE))
    n, t, width = x.shape
    for block in visual.blocks:
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(x)).view(n, t, 3, attn.num_heads, attn.head_dim).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        seen = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + attn.proj(seen.transpose(1, 2).reshape(n, t, width))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.reshape(n * t, width)).view(n, t // MERGE**2, -1)
