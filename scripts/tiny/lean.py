"""The language part of the tiny Qwen2.5-VL as few operations per layer, for training: the same numbers, and bf16 where asked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def rotation(language_model: nn.Module, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, 1, t, head] of positions [3, 1, t] that all rows share."""
    cos, sin = language_model.rotary_emb(torch.zeros(1, device=positions.device), positions)
    return cos[:, None] if cos.ndim == 3 else cos, sin[:, None] if sin.ndim == 3 else sin


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def hidden(language_model: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Last hidden states [n, t, width] of embeddings [n, t, width], causal."""
    x = stream(language_model, x, cos, sin)
    return F.rms_norm(x, x.shape[-1:], language_model.norm.weight, language_model.norm.variance_epsilon)


def stream(language_model: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The same before the last norm."""
    n, t, width = x.shape
    for layer in language_model.layers:
        a = layer.self_attn
        heads = a.num_heads
        seen = F.rms_norm(x, (width,), layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        weight = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
        bias = torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias])
        q, k, v = F.linear(seen, weight, bias).view(n, t, 3 * heads, -1).transpose(1, 2).split(heads, 1)
        q, k = turned(q, cos.to(q.dtype), sin.to(q.dtype)), turned(k, cos.to(q.dtype), sin.to(q.dtype))
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + a.o_proj(mixed.transpose(1, 2).reshape(n, t, width))
        seen = F.rms_norm(x, (width,), layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon)
        x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(seen)) * layer.mlp.up_proj(seen))
    return x
