"""Weights in 8 or 4 bits: what each kind needs, what stays as it was and why, and the bytes it takes. Imports no tensor library.

Only the matrices of the language layers are made small. The vision tower with its merger stays (8 % of the 7B, and every token of a
picture goes through it), so do the norms and biases, the word embeddings, and the output head: tied to the words it would become a second
copy, and its rounding falls on the very likelihoods that rank candidates.

Such a model never moves: torchao's tensors are wrappers without bytes of their own, bitsandbytes repacks by device and has silently damaged
weights that were moved. It is built on its device, dropped when its place is needed, and read from disk again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from fgvr.errors import ModelLoadError
from fgvr.runtime.devices.base import Device

if TYPE_CHECKING:
    import torch

_LANGUAGE = ("language_model", "text_model")  # what families call the part that is made small
_WHERE = "cpu or cuda"  # where it has been tried, or is documented
CURE = "pip install 'fgvr[quant]'"
BLOCK = 64  # 4-bit values that share one float32 scale
_CODE = 16 * 4  # bytes of the table of 4-bit values, which every matrix has for itself


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to store a matrix in fewer bits."""

    library: str
    floor: str  # its oldest release that is known to work
    recipe: str  # part of the fingerprint: answers change with it

    def matrix_bytes(self, rows: int, columns: int) -> int:
        values = rows * columns
        if self.library == "torchao":
            return values + rows * (4 + 1)  # a float32 scale and an 8-bit zero per row
        return -(-values // 2) + 4 * -(-values // BLOCK) + _CODE


KINDS = {
    "int8": Kind("torchao", "0.18", "torchao int8 weight-only, a scale per row"),
    "nf4": Kind("bitsandbytes", "0.50", "bitsandbytes nf4, a float32 scale per 64 values"),
}


def kind_of(name: str) -> Kind:
    """Raises ModelLoadError with the known ones."""
    if name not in KINDS:
        raise ModelLoadError(f"quantization={name!r} is not known; known are {', '.join(KINDS)}")
    return KINDS[name]


def require(name: str, device: Device) -> None:
    """Raises ModelLoadError naming the cure when the library is missing or too old, or the device cannot do it. Imports nothing."""
    if missing := _missing(name):
        raise ModelLoadError(f"models.mllm.quantization={name}: {missing}.\nGet it: {CURE}. Works without: models.mllm.quantization=null")
    if not device.quantizes:
        raise ModelLoadError(
            f"models.mllm.quantization={name} works on {_WHERE}, not on {device.name}.\n"
            "On Apple silicon take 4 bits by MLX: models=qwen2_5_vl_7b_mlx; else models.mllm.quantization=null"
        )


def needs(name: str, device: type[Device]) -> str:
    """In words, for a plan: the library and the device, and what of both is not here. Imports nothing."""
    kind, absent = kind_of(name), lacks(name, device)
    asks = f"{name} asks for {kind.library} {kind.floor} or newer ({CURE}) and for {_WHERE}"
    return f"{asks}; it cannot be loaded here: {'; '.join(absent)}" if absent else f"{asks}: both are here"


def lacks(name: str, device: type[Device]) -> list[str]:
    """What is not here, in words; nothing when such a model can be loaded."""
    elsewhere = "" if device.quantizes else f"works on {_WHERE}, not on {device.name}"
    return [text for text in (_missing(name), elsewhere) if text]


def _missing(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    kind = kind_of(name)
    try:
        found = version(kind.library)
    except PackageNotFoundError:
        return f"{kind.library} {kind.floor} or newer is not installed"
    return f"{kind.library} {found} is installed, {kind.floor} or newer is needed" if Version(found) < Version(kind.floor) else ""


def refuse_quantized_folder(config: dict[str, Any], folder: object) -> None:
    """Raises ModelLoadError for weights that were saved in fewer bits: their sizes and ours would differ."""
    if found := config.get("quantization_config"):
        method = found.get("quant_method", "an unknown method") if isinstance(found, dict) else found
        raise ModelLoadError(
            f"{folder} holds weights quantised by {method}, which are not loaded as they are.\n"
            "Take the folder of the full weights with models.mllm.quantization=int8 or nf4"
        )


def kept(module: torch.nn.Module) -> list[str]:
    """Parts that stay as they are, by the start of their full names: "visual" alone would match nothing."""
    within = dict(module.named_children()).get("model", module)
    prefix = "" if within is module else "model."
    return [*(prefix + name for name, _ in within.named_children() if name not in _LANGUAGE), "lm_head"]


def options(name: str, dtype: str, device: Any, kept: list[str]) -> dict[str, Any]:
    """For `from_pretrained`: quantise each matrix as it is read, straight on its device. Raises ModelLoadError; imports the library."""
    try:
        config = _torchao(kept) if name == "int8" else _bitsandbytes(dtype, kept)
    except ImportError as error:
        raise ModelLoadError(
            f"models.mllm.quantization={name}: {kind_of(name).library} is installed but cannot be imported ({error}).\n"
            f"Get it anew: {CURE} --force-reinstall"
        ) from error
    return {"quantization_config": config, "device_map": device.torch_name}


def _torchao(kept: list[str]) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)


def _bitsandbytes(dtype: str, kept: list[str]) -> Any:
    """The compute type is the model's: the default, float32, would make every product of a 16-bit model a slow one."""
    import bitsandbytes  # noqa: F401 (its absence must show here, not deep inside a load)
    from transformers import BitsAndBytesConfig

    from fgvr.runtime.loaders.tensors import torch_dtype

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch_dtype(dtype), llm_int8_skip_modules=kept
    )


def keep_layout(module: torch.nn.Module) -> None:
    """No repacking at the first forward pass: on CPUs with AVX512-BF16 bitsandbytes would replace weights that were counted already."""
    for part in module.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
