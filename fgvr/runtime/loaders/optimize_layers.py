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
from fgvr.runtime.sizes.clip import FEW_TOKENS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_FEW = 8  # rows; below, MKL is as quick and starts sooner
_BLOCK = 512  # rows at once where their number varies
_SMALL = 1 << 16  # weights; below, starting takes as long as the sums


def optimize(module: nn.Module, device: Device, *, steady: bool = False) -> nn.Module:
    """The same frozen module; its larger layers quicker where it will compute on the CPU and oneDNN is ahead.

    `steady`: batches come with few different numbers of rows, as images of one size do. oneDNN keeps a compiled kernel of .7 MiB for each
    number and layer; other modules therefore compute in blocks of a few fixed sizes. Layers can no longer be pickled.
    """
    from torch import nn

    if device.optimize and device.torch_name == "cpu" and by_onednn(next(module.parameters()).dtype):
        forwards = {nn.Linear: _linear, nn.MultiheadAttention: _attention, nn.Conv2d: _convolution, nn.Conv3d: _convolution}
        for part in module.modules():
            forward = forwards.get(type(part))
            if forward is not None and sum(p.numel() for p in part.parameters(recurse=False)) >= _SMALL:
                give_forward(part, forward, steady=steady)
    return module


def give_forward(module: nn.Module, forward: Callable[..., Any], *, steady: bool = True) -> None:
    """By its class: a method of its own would be a cycle, and a model that is dropped would keep its memory until the next collection."""
    module.__class__ = _with_forward(type(module), forward, steady)


@cache
def _with_forward(kind: type[nn.Module], forward: Callable[..., Any], steady: bool) -> type[nn.Module]:
    return type(f"Quick{kind.__name__}", (kind,), {"forward": forward, "product": staticmethod(product if steady else product_in_blocks)})


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


def product_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same; whatever the number of rows, oneDNN meets only seven."""
    import torch

    rows = x.numel() // x.shape[-1]
    if rows <= _FEW:
        return product(x, weight, bias)
    parts = x.reshape(rows, x.shape[-1]).split(_blocks(rows))
    return torch.cat([product(part, weight, bias) for part in parts]).view(*x.shape[:-1], len(weight))


@cache
def _blocks(rows: int) -> list[int]:
    """512s and the powers of two that make up the rest; what is under 8 last."""
    powers = [1 << bit for bit in range(_BLOCK.bit_length() - 2, 2, -1) if rows % _BLOCK >> bit & 1]
    return [_BLOCK] * (rows // _BLOCK) + powers + [rows % _FEW] * (rows % _FEW > 0)


def _linear(layer: Any, input: Tensor) -> Tensor:
    return layer.product(input, layer.weight, layer.bias)


# --- attention ---------------------------------------------------------------------------------------------------------------


def _attention(layer: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """As CLIP's towers call it: keys and values of the same tokens, one mask for all. Anything else is PyTorch's own."""
    from torch import nn

    mask = options.get("attn_mask")
    one_mask = mask is None or (mask.dim() == 2 and mask.dtype == query.dtype)  # of True and False: another meaning
    if not (key is value and query.dim() == 3 and not args and one_mask and _plain(layer, options)):
        return nn.MultiheadAttention.forward(layer, query, key, value, *args, **options)
    if query is key:
        q, k, v = _heads(layer, query, 0, 3)
    else:
        (q,), (k, v) = _heads(layer, query, 0, 1), _heads(layer, key, 1, 3)
    seen = _attend(q, k, v, mask).transpose(1, 2).reshape(query.shape)
    return layer.product(seen, layer.out_proj.weight, layer.out_proj.bias), None


def _plain(layer: nn.MultiheadAttention, options: dict[str, Any]) -> bool:
    unasked = options.get("need_weights") is False and options.keys() <= {"need_weights", "attn_mask"}
    added = layer.bias_k is not None or layer.add_zero_attn
    packed = layer.kdim == layer.vdim == layer.embed_dim and layer.in_proj_bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    return unasked and layer.batch_first and packed and not added


def _heads(layer: Any, tokens: Tensor, first: int, end: int) -> Tensor:
    """(B, T, width) -> (end - first, B, heads, T, width of a head): of queries (0), keys (1), values (2)."""
    rows = slice(first * layer.embed_dim, end * layer.embed_dim)
    found = layer.product(tokens, layer.in_proj_weight[rows], layer.in_proj_bias[rows])
    return found.view(*tokens.shape[:2], end - first, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Each (B, heads, T, width of a head). PyTorch's fused attention gains nothing from bfloat16: few tokens are quicker in steps."""
    import torch

    if q.dtype != torch.bfloat16 or k.shape[2] > FEW_TOKENS:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores.add_(mask)).softmax(-1) @ v


# --- patches -----------------------------------------------------------------------------------------------------------------


def _convolution(layer: Any, input: Tensor) -> Tensor:
    """(B, C, sides) -> (B, out, sides / kernel): over windows side by side it is a product, a row for each; else PyTorch's own."""
    if not _side_by_side(layer, input):
        own: Any = super(type(layer), layer)
        return own.forward(input)
    kernel = layer.kernel_size
    grid = [size // side for size, side in zip(input.shape[2:], kernel, strict=True)]
    cut = input.reshape(*input.shape[:2], *(n for pair in zip(grid, kernel, strict=True) for n in pair))
    places = range(2, cut.dim(), 2)
    rows = cut.permute(0, *places, 1, *(place + 1 for place in places)).reshape(-1, input.shape[1] * math.prod(kernel))
    found = layer.product(rows, layer.weight.flatten(1), layer.bias)
    return found.view(len(input), *grid, layer.out_channels).movedim(-1, 1)


def _side_by_side(layer: nn.Conv2d | nn.Conv3d, input: Tensor) -> bool:
    """Windows neither overlap nor leave a rest."""
    sides = len(layer.kernel_size)
    apart = layer.kernel_size == layer.stride and layer.padding == (0,) * sides and layer.dilation == (1,) * sides and layer.groups == 1
    return (
        apart and input.dim() == 2 + sides and all(size % side == 0 for size, side in zip(input.shape[2:], layer.kernel_size, strict=True))
    )
