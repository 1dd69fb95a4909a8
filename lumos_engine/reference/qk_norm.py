"""Per-head LayerNorm of queries and keys, then MM-RoPE."""

from __future__ import annotations

import torch
from torch import Tensor

from .rotary import mm_rope


def head_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of x [tokens, heads, head_dim]; head j uses row j // (heads / rows) of
    weight and bias [rows, head_dim].

    Computed in fp32 at least, rounded once.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    centred = x.to(dtype) - x.to(dtype).mean(-1, keepdim=True)
    normal = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    repeats = x.shape[1] // weight.shape[0]
    weight, bias = (row.to(dtype).repeat_interleave(repeats, dim=0) for row in (weight, bias))
    return (normal * weight + bias).to(x.dtype)


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
    """See ``lumos_engine.ops.qk_norm_mm_rope``."""
    return (
        mm_rope(head_norm(q, q_weight, q_bias, eps), positions, inv_freq, parity=parity),
        mm_rope(head_norm(k, k_weight, k_bias, eps), positions, inv_freq, parity=parity),
    )
