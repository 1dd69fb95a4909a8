"""Attention under a dense mask, one sequence at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .mask import visible

if TYPE_CHECKING:
    from ..layout import SequenceLayout


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Softmax attention of q [queries, heads, head_dim] to k, v [keys, kv_heads, head_dim] under mask [queries, keys].

    A query that sees nothing gets 0 and -inf. Keys that hold NaN or infinity have no influence on queries that do
    not see them; those that do get NaN, and no gradient.
    """
    out_dtype = q.dtype
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    queries, heads, head_dim = q.shape
    kv_heads = k.shape[1]

    # 0 x NaN is NaN: such rows must leave the arithmetic, not only the mask.
    broken = ~(k.isfinite() & v.isfinite()).all(-1)  # [keys, kv_heads]
    k, v = (x.masked_fill(broken[..., None], 0.0) for x in (k, v))
    sees_broken = (mask.to(dtype) @ broken.to(dtype)) > 0  # [queries, kv_heads]

    grouped = q.unflatten(1, (kv_heads, heads // kv_heads))
    scores = torch.einsum("qhgd,khd->qhgk", grouped, k) * (head_dim**-0.5 if scale is None else scale)
    scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    # One more key that nobody sees: a maximum needs at least one, and a step may have none.
    padded = torch.nn.functional.pad(scores.detach(), (0, 1), value=-torch.inf)
    top = padded.amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    out = torch.einsum("qhgk,khd->qhgd", weights / total.masked_fill(total == 0, 1.0), v)
    lse = (top + total.log()).squeeze(-1).detach()
    out = out.masked_fill(sees_broken[..., None, None], torch.nan)
    lse = lse.masked_fill(sees_broken[..., None], torch.nan)
    return out.reshape(queries, heads, head_dim).to(out_dtype), lse.reshape(queries, heads)


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See ``lumos_engine.ops.block_attention``. ``lse`` is fp64 for fp64 inputs."""
    outs, lses = [], []
    for sequence in range(layout.num_sequences):
        slots = slice(int(layout.cu_seqlens[sequence]), int(layout.cu_seqlens[sequence + 1]))
        out, lse = attend(q[slots], k[slots], v[slots], visible(layout, sequence).to(q.device), scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)
