"""Union of two attention results over disjoint keys."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """See ``lumos_engine.ops.merge_attention``. ``lse`` is fp64 for fp64 inputs."""
    dtype = torch.promote_types(out_a.dtype, torch.float32)
    lse = torch.logaddexp(lse_a.to(dtype), lse_b.to(dtype))
    empty = lse == -torch.inf

    def part(out: Tensor, side: Tensor) -> Tensor:
        weight = (side.to(dtype) - lse).masked_fill(empty, -torch.inf).exp()
        # A side that saw nothing may hold anything, NaN included.
        return torch.where((side == -torch.inf)[..., None], 0.0, out.to(dtype) * weight[..., None])

    return (part(out_a, lse_a) + part(out_b, lse_b)).to(out_a.dtype), lse
