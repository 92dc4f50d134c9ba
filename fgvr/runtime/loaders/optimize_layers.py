"""Float32 layers of a loaded model by oneDNN on AMD processors, where PyTorch would take MKL, which keeps them from their AVX-512.

oneDNN, in the same wheel, does such products in half the time there, and in nine tenths where there is only AVX2. Weights stay what and
where they are, and sums are the same up to their order (2e-7 of an embedding): modules only get another `forward`.
`python -m benchmarks tricks` measures it; docs/adr/0031-quicker-layers.md has the reasons.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from fgvr.runtime.devices.base import Device
from fgvr.runtime.devices.cpu import is_amd

if TYPE_CHECKING:
    from torch import Tensor, nn

_FEW = 8  # rows; below, MKL is as quick and starts sooner
_SMALL = 1 << 16  # weights; below, starting takes as long as the sums
_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # oneDNN keeps .7 MiB for each number of rows; prompts have many, and its own limit is 1,024


def optimize(module: nn.Module, device: Device) -> nn.Module:
    """The same frozen module; its larger layers quicker where it will compute on the CPU and oneDNN is ahead."""
    import torch
    from torch import nn

    if device.optimize and device.torch_name == "cpu" and next(module.parameters()).dtype == torch.float32 and onednn_is_ahead():
        os.environ.setdefault(_KERNELS, "64")
        forwards = {nn.Linear: _linear, nn.MultiheadAttention: _attention}
        for part in module.modules():
            forward = forwards.get(type(part))
            if forward is not None and sum(p.numel() for p in part.parameters(recurse=False)) >= _SMALL:
                # By its class: a method of its own would be a cycle, and a dropped model would keep its memory until the next collection.
                part.__class__ = _with_forward(type(part), forward)
    return module


@cache
def _with_forward(kind: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    return type(f"Optimized{kind.__name__}", (kind,), {"forward": forward})


def onednn_is_ahead() -> bool:
    """Whether PyTorch would take MKL on this processor, and has the operator that torch.compile makes of linear layers."""
    import torch

    return is_amd() and torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """functional.linear without gradients: (..., in), (out, in), (out,) -> (..., out)."""
    import torch

    if x.numel() < _FEW * x.shape[-1]:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _linear(layer: Any, input: Tensor) -> Tensor:
    return product(input, layer.weight, layer.bias)


def _attention(layer: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """As CLIP's towers call it: one sequence attends to itself, one mask for all. Anything else is PyTorch's own."""
    import torch
    from torch import nn

    mask = options.get("attn_mask")
    one_mask = mask is None or (mask.dim() == 2 and mask.dtype == query.dtype)  # of True and False: another meaning
    if not (query is key is value and query.dim() == 3 and not args and one_mask and _plain(layer, options)):
        return nn.MultiheadAttention.forward(layer, query, key, value, *args, **options)
    heads = product(query, layer.in_proj_weight, layer.in_proj_bias).view(*query.shape[:2], 3, layer.num_heads, layer.head_dim)
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(query.shape)
    return product(seen, layer.out_proj.weight, layer.out_proj.bias), None


def _plain(layer: nn.MultiheadAttention, options: dict[str, Any]) -> bool:
    unasked = options.get("need_weights") is False and options.keys() <= {"need_weights", "attn_mask"}
    added = layer.bias_k is not None or layer.add_zero_attn
    packed = layer.kdim == layer.vdim == layer.embed_dim and layer.in_proj_bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    return unasked and layer.batch_first and packed and not added
