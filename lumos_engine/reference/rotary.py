"""MM-RoPE: rotary embedding of a (t, h, w) position (arXiv 2507.08801, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

AXES = (0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2)
"""Axis (0 = t, 1 = h, 2 = w) of frequency index f, by f mod 16: time, height and width get 2 : 3 : 3."""


def inverse_frequencies(head_dim: int, theta: float = 10000.0) -> Tensor:
    """``theta ** (-2 f / head_dim)`` for f = 0 .. head_dim/2 - 1, fp32, by the arithmetic of the original."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rotation_table(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [tokens, head_dim / 2] in ``dtype`` (fp32 or fp64) of the fp32 product position x frequency."""
    axes = torch.tensor(AXES, device=positions.device).repeat(len(inv_freq) // len(AXES))
    angle = positions.float()[:, axes] * inv_freq
    return angle.to(dtype).cos(), angle.to(dtype).sin()


def rotated(
    x: Tensor,
    positions: Tensor,
    inv_freq: Tensor | None,
    *,
    inverse: bool = False,
    tables_in: torch.dtype | None = None,
) -> Tensor:
    """``mm_rope`` of x in fp32 or fp64, not rounded; cosine and sine rounded to ``tables_in`` where given."""
    if inv_freq is None:
        inv_freq = inverse_frequencies(x.shape[-1]).to(x.device)
    cos, sin = rotation_table(positions, inv_freq, x.dtype)
    if tables_in is not None:
        cos, sin = cos.to(tables_in).to(x.dtype), sin.to(tables_in).to(x.dtype)
    if inverse:
        sin = -sin
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def mm_rope(
    x: Tensor,
    positions: Tensor,
    inv_freq: Tensor | None = None,
    *,
    inverse: bool = False,
    parity: bool = False,
    inplace: bool = False,
) -> Tensor:
    """See ``lumos_engine.ops.mm_rope``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    tables_in = x.dtype if parity else None
    out = rotated(wide, positions, inv_freq, inverse=inverse, tables_in=tables_in).to(x.dtype)
    return x.copy_(out) if inplace else out
