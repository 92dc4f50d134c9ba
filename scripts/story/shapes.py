"""Values (parameters) of the models in the story, and the check that they are those of the meta device."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from fgvr.runtime.sizes import qwen, towers

DATA = Path(os.environ.get("FGVR_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "qwen2_5_vl_7b"
SHAPES = {
    "qwen": sum(qwen.KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"].counts().values()),
    "vit_b_32": sum(towers.KNOWN["ViT-B-32"].values),
    "vit_l_14": sum(towers.KNOWN["ViT-L-14"].values),
    "blip": 223_744_258,  # ITM base
    "blip2": 12_098_000_384,  # with FLAN-T5 XXL
}


def check_shapes() -> list[str]:
    """What disagrees. Builds every model on torch's meta device: shapes without memory."""
    import torch

    clips, hub = (import_module(name) for name in ("open_clip", "transformers"))

    found: dict[str, int] = {}
    with torch.device("meta"):
        if (DATA / "config.json").is_file():
            found["qwen"] = _values(hub.Qwen2_5_VLForConditionalGeneration(hub.AutoConfig.from_pretrained(DATA)))
        for name, architecture in (("vit_b_32", "ViT-B-32"), ("vit_l_14", "ViT-L-14")):
            found[name] = _values(clips.CLIP(**clips.get_model_config(architecture)))
        found["blip"] = _values(hub.BlipForImageTextRetrieval(hub.BlipConfig(vision_config={"image_size": 384})))
        xxl = hub.T5Config(
            d_model=4096, d_ff=10240, d_kv=64, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=32128,
            tie_word_embeddings=False,
        )  # fmt: skip
        parts = {
            "vision_config": hub.Blip2VisionConfig().to_dict(),
            "qformer_config": hub.Blip2QFormerConfig().to_dict(),
            "text_config": xxl.to_dict(),
        }
        found["blip2"] = _values(hub.Blip2ForConditionalGeneration(hub.Blip2Config(**parts)))
    index = DATA / "model.safetensors.index.json"
    wrong = [
        f"{name}: {SHAPES[name]:,} values assumed, {count:,} on the meta device" for name, count in found.items() if SHAPES[name] != count
    ]
    if index.is_file() and (told := json.loads(index.read_text())["metadata"]["total_size"]) != SHAPES["qwen"] * 2:
        wrong.append(f"qwen: {SHAPES['qwen'] * 2:,} bytes, its index says {told:,}")
    return wrong


def _values(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
