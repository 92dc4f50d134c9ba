"""Multimodal families: which ones transformers has, and what is special to those with a profile. Imports no tensor library at import.

A family without a profile works by the general path: its own processor and chat template, positions from the mask (or from the model's own
`get_rope_index`), and a shared key-value cache. `max_pixels` then scales pictures down before its processor sees them.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgvr.errors import ModelLoadError
from fgvr.runtime.loaders import complete, files
from fgvr.runtime.loaders.base import SANE_PIXELS
from fgvr.types import ModelSpec

_MAPPING = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_INSTEAD = f"Have an engine hold this model (models/mllm=remote; models/mllm=mlx where mlx-vlm reads it), or take {files.OFFLINE}"


@dataclass(frozen=True, slots=True)
class Profile:
    """What is special to a family.

    Attributes:
        limit_pixels: makes an image processor spend at most so many pixels on one picture.
        pixels: what it spends at most by itself, from its settings (a preprocessor_config.json).
        most: a default for `max_pixels=null` below the processor's own; None = the processor's own holds.
        resizes_smartly: sizes of pictures follow `qwen_vl_utils.smart_resize`.
    """

    limit_pixels: Callable[[Any, int], None]
    pixels: Callable[[Mapping[str, Any]], int]
    most: int | None = None
    resizes_smartly: bool = False


def _limit_area(image_processor: Any, pixels: int) -> None:
    image_processor.size = dict(image_processor.size) | {"longest_edge": pixels}


def _limit_side(image_processor: Any, pixels: int) -> None:
    """SmolVLM and Idefics 3 scale the long side to a multiple of a tile."""
    tile = image_processor.max_image_size["longest_edge"]
    image_processor.size = {"longest_edge": max(tile, math.isqrt(pixels) // tile * tile)}


def _limit_tiles(image_processor: Any, pixels: int) -> None:
    size = image_processor.size
    image_processor.max_patches = max(image_processor.min_patches, pixels // (size["height"] * size["width"]))


def _limit_grid(image_processor: Any, pixels: int) -> None:
    grid = image_processor.image_grid_pinpoints
    image_processor.image_grid_pinpoints = [sides for sides in grid if math.prod(sides) <= pixels] or [min(grid, key=math.prod)]


def _keep(image_processor: Any, pixels: int) -> None:
    """A picture always takes the same number of pixels."""


def _area(settings: Mapping[str, Any]) -> int:
    return int(settings.get("max_pixels") or (settings.get("size") or {}).get("longest_edge") or SANE_PIXELS)


def _square(settings: Mapping[str, Any]) -> int:
    return int((settings.get("size") or {}).get("longest_edge", 4 * 364)) ** 2


def _tile(settings: Mapping[str, Any]) -> int:
    size = settings.get("size") or {}
    return int(size.get("height", 448)) * int(size.get("width", 448))


def _tiles(settings: Mapping[str, Any]) -> int:
    return _tile(settings) * int(settings.get("max_patches") or 12)


def _nine_tiles(settings: Mapping[str, Any]) -> int:
    """LLaVA-OneVision reduces what goes beyond nine tiles (`anyres_max_9`), but its tower sees the whole grid."""
    grid = settings.get("image_grid_pinpoints")
    return max(map(math.prod, grid)) if grid else 36 * _tile(settings)


_QWEN = Profile(_limit_area, _area, most=SANE_PIXELS, resizes_smartly=True)
_IDEFICS = Profile(_limit_side, _square)
PROFILES: dict[str, Profile] = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "llava_onevision": Profile(_limit_grid, _nine_tiles),
    "internvl": Profile(_limit_tiles, _tiles),
    "gemma3": Profile(_keep, _tile),
}
"""By `model_type`. Each is tested with a random model (tests/runtime/test_families.py)."""


def read_config(folder: Path) -> dict[str, Any]:
    """A config.json. Raises ModelLoadError, naming the family, for what is no chat model of images and text in transformers' form."""
    config = files.read_config(folder / "config.json")
    kind = config.get("model_type")
    used = class_of(kind)
    if used is None:
        raise ModelLoadError(
            f"{folder} holds {complete.family(config)}, which is no image-text-to-text model of the installed transformers.\n"
            f"Point models.mllm.source at another folder; or: {_INSTEAD}"
        )
    classes = config.get("architectures")
    if classes and isinstance(classes, list) and used not in classes:
        raise ModelLoadError(
            f"{folder} holds {complete.family(config)}, and is loaded as {used} ({kind}) here, which would not fit.\n{_INSTEAD}"
        )
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    if has_tokenizer and not _has_chat_template(folder):  # a configuration alone can be sized
        raise ModelLoadError(
            f"{folder} holds {complete.family(config)} without a chat template (chat_template.jinja), so it cannot be asked.\n"
            "Take the instruction-tuned model of the family, or get the folder again"
        )
    return config


def class_of(model_type: Any) -> str | None:
    """The class that loads this kind of model; None when transformers has none for images and text."""
    return _classes().get(model_type) if isinstance(model_type, str) else None


def support(config: Mapping[str, Any]) -> str:
    """In words, for a plan."""
    kind = config.get("model_type")
    if class_of(kind) is None:
        return "not supported by the installed transformers"
    return "supported" if kind in PROFILES else "supported by the general path, which is not tested with this family"


def open_processor(folder: Path, model_type: Any) -> Any:
    """The processor of a folder by transformers' own class. `AutoProcessor` is asked last: other packages replace its `from_pretrained` for
    the whole process (mlx-vlm, wherever one of its models is imported), and register classes of theirs."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    told = (files.read_config(folder / name).get("processor_class") for name in _PROCESSOR_FILES if (folder / name).is_file())
    name = next(filter(None, told), None) or PROCESSOR_MAPPING_NAMES.get(model_type)
    own = getattr(transformers, name, None) if isinstance(name, str) else None
    return (own or transformers.AutoProcessor).from_pretrained(folder, local_files_only=True)


def image_settings(folder: Path | None) -> Mapping[str, Any]:
    """What the folder says about its image processor; empty when nothing does."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if folder is not None and (folder / name).is_file():
            settings = files.read_config(folder / name)
            return settings.get("image_processor", settings)
    return {}


def max_pixels(spec: ModelSpec, folder: Path | None, kind: Any) -> int | None:
    """The cap on a picture's pixels in force; None: whatever the processor does by itself."""
    profile = PROFILES.get(str(kind))
    if spec.max_pixels is not None or (profile is not None and profile.most is None):
        return spec.max_pixels
    return SANE_PIXELS if profile is None or profile.most is None else min(_pixels(profile, folder), profile.most)


def most_pixels(spec: ModelSpec, folder: Path | None, kind: Any) -> int:
    """Of the largest picture that a model sees in full, by its cap or by its processor's."""
    return max_pixels(spec, folder, kind) or _pixels(PROFILES[str(kind)], folder)


def _pixels(profile: Profile, folder: Path | None) -> int:
    try:
        return profile.pixels(image_settings(folder))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelLoadError(f"{folder}: the sizes of its image processor cannot be read ({error}); get the folder again") from error


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config.json."""
    return config.get("text_config") or config.get("llm_config") or config


@cache
def _classes() -> Mapping[str, str]:
    """Model types and classes for images and text, read from transformers' source: importing it takes seconds, and torch with it."""
    found = find_spec("transformers")
    if found is None or found.origin is None:
        raise ModelLoadError("transformers is not installed: pip install 'transformers>=5.19,<6'; works without: models/mllm=fake")
    source = Path(found.origin).parent / "models" / "auto" / "modeling_auto.py"
    if statement := re.search(rf"^{_MAPPING} = .*?^\)$", source.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        names = [ast.literal_eval(pair) for pair in ast.walk(ast.parse(statement[0])) if isinstance(pair, ast.Tuple)]
        return {kind: used if isinstance(used, str) else used[0] for kind, used in names}
    raise ModelLoadError(f"{source} has no {_MAPPING}; fgvr needs transformers>=5.19,<6")


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _TEMPLATES) or any((folder / "additional_chat_templates").glob("*.jinja")):
        return True
    configs = (folder / name for name in ("tokenizer_config.json", "processor_config.json"))
    return any(file.is_file() and bool(files.read_config(file).get("chat_template")) for file in configs)
