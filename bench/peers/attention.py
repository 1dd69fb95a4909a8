"""Attention under a layout as one would write it in torch: rows of the benchmarks. One packed sequence, ``[tokens, heads, head_dim]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lumos_engine import Frame, SequenceLayout

__all__ = ["attentions", "eager_by_frame", "flex", "sdpa_by_frame", "sdpa_masked"]

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _by_frame(layout: SequenceLayout, attend: Callable[..., Tensor]) -> Attention:
    """Each frame's queries against all keys up to its end, hidden ones left out of its history; text causal.

    ``attend(q, k, v, causal)`` takes ``[1, heads, tokens, head_dim]``.
    """
    segments = layout.segments(0)
    kept = None if layout.hidden is None else (~layout.hidden).nonzero()[:, 0]

    def keys(x: Tensor, begin: int, end: int) -> Tensor:
        if kept is None:
            return x[:, :, :end]
        history = kept[: int(torch.searchsorted(kept, begin))]
        return torch.cat((x[:, :, history], x[:, :, begin:end]), 2)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        outs = []
        for segment, begin, end in segments:
            frame = isinstance(segment, Frame)
            if not frame and begin:
                raise ValueError("text behind frames needs a mask")
            outs.append(attend(q[:, :, begin:end], keys(k, begin, end), keys(v, begin, end), not frame))
        return torch.cat(outs, 2)[0].transpose(0, 1)

    return run


def sdpa_by_frame(layout: SequenceLayout) -> Attention:
    return _by_frame(layout, lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def eager_by_frame(layout: SequenceLayout) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            ones = torch.ones(scores.shape[-2:], dtype=torch.bool)
            scores = scores.masked_fill(ones.triu(1), -torch.inf)
        return scores.softmax(-1) @ v

    return _by_frame(layout, attend)


def sdpa_masked(layout: SequenceLayout) -> Attention:
    mask = layout.visible(0)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, attn_mask=mask)[0].transpose(0, 1)

    return run


def flex(layout: SequenceLayout) -> Attention:
    """FlexAttention, compiled; it has no backward on CPUs."""
    tokens = layout.num_tokens
    begins, ends = torch.arange(tokens), torch.arange(1, tokens + 1)
    for segment, begin, end in layout.segments(0):
        if isinstance(segment, Frame):
            begins[begin:end], ends[begin:end] = begin, end
    shown = torch.ones(tokens, dtype=torch.bool) if layout.hidden is None else ~layout.hidden

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < ends[query]) & (shown[key] | (key >= begins[query]))

    block_mask = create_block_mask(visible, None, None, tokens, tokens, device="cpu")
    compiled = torch.compile(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        return compiled(*heads_first, block_mask=block_mask)[0].transpose(0, 1)

    return run


_MAKERS = {
    "SDPA frame by frame": sdpa_by_frame,
    "SDPA masked": sdpa_masked,
    "eager frame by frame": eager_by_frame,
    "FlexAttention": flex,
}


def attentions(backward: bool) -> dict[str, Callable[[SequenceLayout], Attention]]:
    """Peers by name, for the forward or for the backward."""
    return {name: make for name, make in _MAKERS.items() if name != "FlexAttention" or not backward}


def heads_first(tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Random values ``[tokens, heads, head_dim]``, in memory as torch's attention likes them best: heads first."""
    return torch.randn(heads, tokens, head_dim).to(dtype).transpose(0, 1)
