"""Random models of a few thousand parameters in the shipped formats: the real loaders run on them without any trained weights."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = (
    "a bird with red blue black white brown crown back belly breast beak wing tail legs and the of is this describe look closely visible "
    "features which answer with its name letter you say exactly what pictures A B C D E . , : ? "
).split()
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def write_encoder(folder: Path, *, custom_weights: bool = True) -> Path:
    """An open_clip folder: 32 px, width 32, context of 16 tokens."""
    import open_clip
    import torch
    from safetensors.torch import save_file
    from tokenizers import processors

    folder.mkdir(parents=True, exist_ok=True)
    bpe = _bpe(200, ["<pad>", "<start>", "<end>"])
    bpe.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)])
    _fast(bpe, pad_token="<pad>", bos_token="<start>", eos_token="<end>").save_pretrained(folder)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0}
    text = {
        "context_length": 16,
        "vocab_size": bpe.get_vocab_size(),
        "width": 32,
        "heads": 2,
        "layers": 1,
        "pool_type": "eos",
        "eos_id": 2,
        "pad_id": 0,
        "hf_tokenizer_name": "local",
    }
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if custom_weights:
        torch.manual_seed(0)
        module = open_clip.CLIP(**config["model_cfg"])
        weights = {k: v.to(torch.float16).contiguous() for k, v in module.state_dict().items() if k != "attn_mask"}
        save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def write_mllm(folder: Path, *, dtype: str = "bfloat16", spread: float = 0.25, **text: int) -> Path:
    """A Qwen2.5-VL folder: vision 2 x 32, text 2 x 48; weights bf16 and spread, so that wrong positions change answers.

    `text`: other sizes of the language model.
    """
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    bpe = _bpe(320, MARKS)
    tokenizer = _fast(bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>", additional_special_tokens=MARKS[1:])
    tokenizer.padding_side = "left"
    size = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 64}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT,
    )
    processor.save_pretrained(folder)
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "intermediate_size": 96,
            "vocab_size": len(tokenizer),
            "rope_parameters": rope,
            "max_position_embeddings": 2048,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        }
        | text,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": text.get("hidden_size", 48),
            "fullatt_block_indexes": [1],
            "patch_size": 14,
            "window_size": 112,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    module = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=spread)
    module.generation_config.eos_token_id = ids["<|im_end|>"]
    module.generation_config.repetition_penalty = 1.3  # as the real one recommends; we decode greedily
    module.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def write_joint(folder: Path) -> Path:
    """A BLIP image-text matching folder: 32 px, vision 2 x 32, text 2 x 24, context of 24 tokens; weights spread, so that masks matter."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BlipConfig, BlipForImageTextRetrieval

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = Tokenizer(models.WordPiece({w: i for i, w in enumerate([*marks, *sorted({w.lower() for w in WORDS})])}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    _fast(words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    pictures = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": words.get_vocab_size(), "hidden_size": 24, "intermediate_size": 48, "max_position_embeddings": 24, **layers}
    vision = {"hidden_size": 32, "intermediate_size": 48, "image_size": 32, "patch_size": 8, **layers}
    config = BlipConfig(text_config=text | {"pad_token_id": 0}, vision_config=vision, image_text_hidden_size=16)
    torch.manual_seed(0)
    module = BlipForImageTextRetrieval(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    module.save_pretrained(folder)
    return folder


def _bpe(size: int, marks: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return bpe


def _fast(bpe, **names):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
