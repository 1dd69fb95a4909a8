"""What one would write in eager torch, in the dtype of the inputs: the baseline of ``tolerances``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference.mask import visible
from ..reference.rotary import inverse_frequencies, rotation_table

if TYPE_CHECKING:
    from ..layout import SequenceLayout


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention with every intermediate result in the dtype of ``q``; finite inputs only. lse is fp32."""
    outs, lses = [], []
    heads, head_dim = q.shape[1:]
    group = heads // k.shape[1]
    for sequence in range(layout.num_sequences):
        slots = slice(int(layout.cu_seqlens[sequence]), int(layout.cu_seqlens[sequence + 1]))
        queries = q[slots].transpose(0, 1)
        keys, values = (x[slots].transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
        scores = (queries @ keys.transpose(1, 2)) * (head_dim**-0.5 if scale is None else scale)
        mask = visible(layout, sequence)
        empty = ~mask.any(1)[:, None]
        scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
        outs.append((weights @ values).transpose(0, 1))
        lses.append(scores.detach().logsumexp(-1).T.float())
    return torch.cat(outs), torch.cat(lses)


def mm_rope(x: Tensor, positions: Tensor, inv_freq: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """Rotation by tables in the dtype of ``x``."""
    inv_freq = inverse_frequencies(x.shape[-1]) if inv_freq is None else inv_freq
    cos, sin = (torch.cat((t, t), -1)[:, None].to(x.dtype) for t in rotation_table(positions, inv_freq, torch.float32))
    first, second = x.chunk(2, -1)
    turned = torch.cat((-second, first), -1) * sin
    return x * cos - turned if inverse else x * cos + turned


def head_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm over head_dim with the weights of its group of heads, in the dtype of ``x``."""
    repeats = x.shape[1] // weight.shape[0]
    normal = torch.nn.functional.layer_norm(x, (x.shape[-1],), eps=eps)
    return normal * weight.to(x.dtype).repeat_interleave(repeats, 0) + bias.to(x.dtype).repeat_interleave(repeats, 0)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Per-row losses from all logits at once."""
    logits = hidden[rows] @ weight.T
    return torch.nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
    )
