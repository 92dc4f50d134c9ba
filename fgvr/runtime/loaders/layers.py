"""Layers of a loaded model in quicker forms: oneDNN multiplies where PyTorch by itself would take something slower.

PyTorch gives float32 products to MKL, which keeps AMD's processors from their AVX-512; oneDNN, in the same wheel, does them in half the
time there, and in nine tenths where there is only AVX2. bfloat16 products are oneDNN's anyway; asked directly, it adds the bias on its
way. Weights stay what and where they are, and sums are the same up to their order (float32: 2e-7 of an embedding): modules only get
another `forward`. docs/adr/0031-quicker-layers.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.fast_dtype import BF16_FLAGS, cpu_flags, is_amd

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_FEW = 8  # rows; below, MKL is as quick and starts sooner
_SHORT = 260  # tokens; beyond, the matrix of scores would be the widest moment of a batch


def quicken(module: nn.Module, device: Device) -> nn.Module:
    """The same frozen module; its layers quicker where it will compute on the CPU and oneDNN is ahead."""
    from torch import nn

    if device.optimize and device.torch_name == "cpu" and by_onednn(next(module.parameters()).dtype):
        forwards = {nn.Linear: _linear, nn.MultiheadAttention: _attention, nn.Conv2d: _convolution, nn.Conv3d: _convolution}
        for part in module.modules():
            if (forward := forwards.get(type(part))) is not None:
                give_forward(part, forward)
    return module


def give_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """By its class: a method of its own would be a cycle, and a model that is dropped would keep its memory until the next collection."""
    module.__class__ = _with_forward(type(module), forward)


@cache
def _with_forward(kind: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    return type(f"Quick{kind.__name__}", (kind,), {"forward": forward})


def by_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN, asked directly, is ahead of PyTorch's own choice on this processor."""
    import torch

    if not has_operator():
        return False
    if dtype == torch.float32:
        return torch.backends.mkl.is_available() and is_amd()
    return dtype == torch.bfloat16 and bool(cpu_flags() & set(BF16_FLAGS))


def has_operator() -> bool:
    """Whether this build of PyTorch has what torch.compile makes of linear layers."""
    import torch

    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """functional.linear without gradients: (..., in), (out, in), (out,) -> (..., out)."""
    import torch

    if x.numel() < _FEW * x.shape[-1]:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _linear(layer: nn.Linear, input: Tensor) -> Tensor:
    return product(input, layer.weight, layer.bias)


# --- attention ---------------------------------------------------------------------------------------------------------------


def _attention(
    layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """As CLIP's towers call it: keys and values of the same tokens, one mask for all. Anything else is PyTorch's own."""
    from torch import nn

    mask = options.get("attn_mask")
    if not (key is value and not args and _plain(layer, options) and (mask is None or mask.dim() == 2)):
        return nn.MultiheadAttention.forward(layer, query, key, value, *args, **options)
    if query is key:
        q, k, v = _heads(layer, query, 0, 3)
    else:
        (q,), (k, v) = _heads(layer, query, 0, 1), _heads(layer, key, 1, 3)
    seen = _attend(q, k, v, mask).transpose(1, 2).reshape(query.shape)
    return product(seen, layer.out_proj.weight, layer.out_proj.bias), None


def _plain(layer: nn.MultiheadAttention, options: dict[str, Any]) -> bool:
    unasked = options.get("need_weights") is False and options.keys() <= {"need_weights", "attn_mask"}
    added = layer.bias_k is not None or layer.add_zero_attn
    packed = layer.kdim == layer.vdim == layer.embed_dim and layer.in_proj_bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    return unasked and layer.batch_first and packed and not added


def _heads(layer: nn.MultiheadAttention, tokens: Tensor, first: int, end: int) -> Tensor:
    """(B, T, width) -> (end - first, B, heads, T, width of a head): of queries (0), keys (1), values (2)."""
    rows = slice(first * layer.embed_dim, end * layer.embed_dim)
    found = product(tokens, layer.in_proj_weight[rows], layer.in_proj_bias[rows])
    return found.view(*tokens.shape[:2], end - first, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Each (B, heads, T, width of a head). PyTorch's fused attention gains nothing from bfloat16: few tokens are quicker in steps."""
    import torch

    if q.dtype != torch.bfloat16 or k.shape[2] > _SHORT:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


# --- patches -----------------------------------------------------------------------------------------------------------------


def _convolution(layer: nn.Conv2d | nn.Conv3d, input: Tensor) -> Tensor:
    """(B, C, sides) -> (B, out, sides / kernel): over windows side by side it is a product, a row for each; else PyTorch's own."""
    if not _side_by_side(layer, input):
        return type(layer).__mro__[1].forward(layer, input)
    kernel = layer.kernel_size
    grid = [size // side for size, side in zip(input.shape[2:], kernel, strict=True)]
    cut = input.reshape(*input.shape[:2], *(n for pair in zip(grid, kernel, strict=True) for n in pair))
    places = range(2, cut.dim(), 2)
    rows = cut.permute(0, *places, 1, *(place + 1 for place in places)).reshape(-1, input.shape[1] * math.prod(kernel))
    return product(rows, layer.weight.flatten(1), layer.bias).view(len(input), *grid, -1).movedim(-1, 1)


def _side_by_side(layer: nn.Conv2d | nn.Conv3d, input: Tensor) -> bool:
    """Windows neither overlap nor leave a rest."""
    sides = len(layer.kernel_size)
    apart = layer.kernel_size == layer.stride and layer.padding == (0,) * sides and layer.dilation == (1,) * sides and layer.groups == 1
    return (
        apart and input.dim() == 2 + sides and all(size % side == 0 for size, side in zip(input.shape[2:], layer.kernel_size, strict=True))
    )
