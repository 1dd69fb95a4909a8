"""Per-head LayerNorm of queries and keys, then MM-RoPE."""

from __future__ import annotations

import torch
from torch import Tensor

from .pages import paged_write
from .rotary import rotated


def head_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of x [tokens, heads, head_dim], in fp32 at least; head j uses row j // (heads /
    rows) of weight and bias [rows, head_dim].
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    centred = x.to(dtype) - x.to(dtype).mean(-1, keepdim=True)
    normal = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    repeats = x.shape[1] // weight.shape[0]
    weight, bias = (row.to(dtype).repeat_interleave(repeats, dim=0) for row in (weight, bias))
    return normal * weight + bias


def qk_norm_mm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    positions: Tensor,
    inv_freq: Tensor | None = None,
    *,
    eps: float = 1e-5,
    parity: bool = False,
) -> tuple[Tensor, Tensor]:
    """See ``lumos_engine.ops.qk_norm_mm_rope``. Rounded once."""
    tables_in = q.dtype if parity else None
    return (
        rotated(head_norm(q, q_weight, q_bias, eps), positions, inv_freq, tables_in=tables_in).to(q.dtype),
        rotated(head_norm(k, k_weight, k_bias, eps), positions, inv_freq, tables_in=tables_in).to(k.dtype),
    )


def qk_norm_mm_rope_paged_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    positions: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    inv_freq: Tensor | None = None,
    *,
    eps: float = 1e-5,
    parity: bool = False,
) -> Tensor:
    """See ``lumos_engine.ops.qk_norm_mm_rope_paged_write``."""
    weights = (q_weight, q_bias, k_weight, k_bias)
    q, k = qk_norm_mm_rope(q, k, *weights, positions, inv_freq, eps=eps, parity=parity)
    paged_write(k, v, k_pages, v_pages, slots)
    return q
