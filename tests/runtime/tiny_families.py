"""A tiny random model of each multimodal family, from transformers' own configuration, processor and model classes. Nothing is downloaded.

Two layers, 32 wide. Matrices are spread, so that a wrong position or mask changes answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvr.runtime.loaders.families import open_processor
from tests.runtime.tiny_random import CHAT, MARKS, _bpe, _fast

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
IDEFICS_CHAT = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
IDEFICS_MARKS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
]
SYSTEM = "you look closely"
PROMPTS = ["describe", "what is visible ? answer with its name", "which bird"]
ANSWERS = [["red", "a blue bird with white wing"], ["black crown .", "a", "brown"], ["", "white"]]
KINDS = ("mm_token_type_ids", "token_type_ids")
ENDS = ("<|im_end|>", "<end_of_utterance>", "<end_of_turn>", "<eos>")
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}
ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
PIXELS = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 64}


def tokens(marks: list[str], **names: str) -> Any:
    tokenizer = _fast(_bpe(320 + len(marks), marks), pad_token=marks[0], additional_special_tokens=marks[1:], **names)
    return tokenizer


def qwen(version: str, config: str, text: Any = None, **vision: Any) -> tuple[Any, Any]:
    import transformers
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = tokens(MARKS, eos_token="<|im_end|>")
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    third = version == "3VL"
    options = {"size": PIXELS} | ({"patch_size": 16} if third else {})
    processor = getattr(transformers, f"Qwen{version}Processor")(
        image_processor=Qwen2VLImageProcessor(**options),
        tokenizer=tokenizer,
        video_processor=(Qwen3VLVideoProcessor if third else Qwen2VLVideoProcessor)(size=PIXELS),
        chat_template=CHAT,
    )
    text = (
        TEXT | ROPE | (text or {}) | {"vocab_size": len(tokenizer), "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    )
    if third:
        text |= {"head_dim": 16}
    if config.endswith("Moe"):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    made = getattr(transformers, f"{config}Config")(
        text_config=text,
        vision_config={"depth": 2, "num_heads": 2, **vision},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return processor, getattr(transformers, f"{config}ForConditionalGeneration")(made)


def qwen2_vl() -> tuple[Any, Any]:
    return qwen("2VL", "Qwen2VL", embed_dim=32, hidden_size=32, mlp_ratio=2)


def qwen2_5_vl() -> tuple[Any, Any]:
    tower = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 112}
    return qwen("2_5_VL", "Qwen2_5_VL", **tower)


def qwen3_vl(kind: str = "Qwen3VL") -> tuple[Any, Any]:
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    return qwen("3VL", kind, **tower)


def qwen3_vl_moe() -> tuple[Any, Any]:
    return qwen3_vl("Qwen3VLMoe")


def smolvlm() -> tuple[Any, Any]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    tokenizer = tokens(IDEFICS_MARKS, eos_token="<end_of_utterance>")
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    videos = SmolVLMVideoProcessor(**sizes, video_sampling={"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 28}})
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=videos,
        image_seq_len=1,
        chat_template=IDEFICS_CHAT,
    )
    return processor, SmolVLMForConditionalGeneration(SmolVLMConfig(**idefics_parts(processor.tokenizer)))


def idefics3() -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    tokenizer = tokens(IDEFICS_MARKS, eos_token="<end_of_utterance>")
    pictures = Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = Idefics3Processor(image_processor=pictures, tokenizer=tokenizer, image_seq_len=1, chat_template=IDEFICS_CHAT)
    return processor, Idefics3ForConditionalGeneration(Idefics3Config(**idefics_parts(processor.tokenizer)))


def idefics_parts(tokenizer: Any) -> dict[str, Any]:
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    text = TEXT | {"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": pad, "eos_token_id": tokenizer.eos_token_id}
    return {
        "text_config": text,
        "vision_config": TOWER,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": pad,
    }


def llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = tokens(marks, eos_token="<|im_end|>")
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    chat = CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n")
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=chat,
    )
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**TEXT, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0),
        vision_config=SiglipVisionConfig(**TOWER),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    return processor, LlavaOnevisionForConditionalGeneration(config)


def internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    special = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = tokens(marks, eos_token="<|im_end|>", extra_special_tokens=special)
    chat = CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": 28, "width": 28}, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": 28, "width": 28}),
        image_seq_length=1,
        chat_template=chat,
    )
    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0),
        vision_config=TOWER | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
    )
    return processor, InternVLForConditionalGeneration(config)


def gemma3() -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    marks = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tokens(marks, eos_token="<eos>", bos_token="<bos>", extra_special_tokens=special)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA_CHAT,
    )
    text = TEXT | {"vocab_size": len(tokenizer), "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in special.items()}
    config = Gemma3Config(
        text_config=text,
        vision_config=TOWER | {"vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    module = Gemma3ForConditionalGeneration(config)
    module.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    return processor, module


def qwen3_5() -> tuple[Any, Any]:
    """Without a profile: a layer of linear attention beside one of full attention, and positions of three axes."""
    linear = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    rope = {"rope_parameters": ROPE["rope_parameters"] | {"partial_rotary_factor": 1.0}}
    tower = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 16}
    text = linear | rope | {"layer_types": ["linear_attention", "full_attention"]}
    return qwen("3VL", "Qwen3_5", text=text, **tower)


def llava() -> tuple[Any, Any]:
    """Without a profile: every picture is a square of the same size."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    tokenizer = tokens(marks, eos_token="<|im_end|>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n"),
    )
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0),
        vision_config=CLIPVisionConfig(**TOWER),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return processor, LlavaForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "smolvlm": smolvlm,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "llava": llava,
    "qwen3_5": qwen3_5,
}
WITHOUT_PROFILE = ("llava", "qwen3_5")


def write_family(name: str, folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    processor, module = FAMILIES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    module.generation_config.repetition_penalty = 1.3  # as some recommend; answers are greedy all the same
    processor.save_pretrained(folder)
    module.to(torch.bfloat16).save_pretrained(folder)
    return folder


class Plain:
    """transformers by itself: one prompt at a time, no cache, positions found by the model."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        self.torch = torch

        self.processor = open_processor(folder, AutoConfig.from_pretrained(folder).model_type)
        self.module = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def inputs(self, images: list[Image], prompt: str, answer: list[int]) -> dict[str, torch.Tensor]:
        shown = [{"type": "image", "image": image} for image in images]
        turns = [("system", [{"type": "text", "text": SYSTEM}]), ("user", [*shown, {"type": "text", "text": prompt}])]
        found = dict(
            self.processor.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )
        more = self.torch.tensor([answer], dtype=self.torch.long)
        for name, added in (
            ("input_ids", more),
            ("attention_mask", self.torch.ones_like(more)),
            *((n, self.torch.zeros_like(more)) for n in KINDS),
        ):
            if name in found:
                found[name] = self.torch.cat([found[name], added], dim=1)
        return found

    def next_log_probs(self, images: list[Image], prompt: str, answer: list[int]) -> torch.Tensor:
        """(W + 1, V): of each token of the answer, and of the one after it."""
        with self.torch.inference_mode():
            return self.module(**self.inputs(images, prompt, answer)).logits[0, -len(answer) - 1 :].log_softmax(-1)

    def score(self, images: list[Image], prompt: str, answer: str) -> float:
        tokenizer = self.processor.tokenizer
        end = next(mark for mark in ENDS if mark in tokenizer.get_vocab())
        ids = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.convert_tokens_to_ids(end)]
        return sum(self.next_log_probs(images, prompt, ids)[i, token].item() for i, token in enumerate(ids))

    def generate(self, images: list[Image], prompt: str, most: int) -> str:
        ids: list[int] = []
        while len(ids) < most and not ({self.processor.tokenizer.convert_ids_to_tokens(i) for i in ids} & set(ENDS)):
            ids.append(int(self.next_log_probs(images, prompt, ids)[-1].argmax()))
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
