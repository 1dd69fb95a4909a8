"""What one would write in eager torch, in the dtype of the inputs: the baseline of ``tolerances``.

``order``: 0 for the call as it stands; any other number for the same call with its tokens, head_dim, width and classes
in a random order that follows from it, and the result put back: equal but for the rounding errors of its sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference.mask import visible
from ..reference.paged import gather
from ..reference.rotary import inverse_frequencies, rotation_table

if TYPE_CHECKING:
    from ..kv_cache import PagedKeys
    from ..layout import LayoutStep, SequenceLayout


def _shuffled(size: int, order: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(order)) if order else torch.arange(size)


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None, order: int = 0
) -> tuple[Tensor, Tensor]:
    """Softmax attention with every intermediate result in the dtype of ``q``; finite inputs only. lse is fp32."""
    outs, lses = [], []
    for sequence in range(layout.num_sequences):
        slots = slice(int(layout.cu_seqlens[sequence]), int(layout.cu_seqlens[sequence + 1]))
        out, lse = _attend(q[slots], k[slots], v[slots], visible(layout, sequence), scale, order)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None, order: int) -> tuple[Tensor, Tensor]:
    heads, head_dim = q.shape[1:]
    if order:
        queries, keys, dims = (_shuffled(size, order) for size in (len(q), len(k), head_dim))
        moved = q[queries][..., dims], k[keys][..., dims], v[keys][..., dims], mask[queries][:, keys]
        out, lse = _attend(*moved, scale, 0)
        return out[queries.argsort()][..., dims.argsort()], lse[queries.argsort()]
    keys, values = (x.transpose(0, 1).repeat_interleave(heads // k.shape[1], 0) for x in (k, v))
    scores = (q.transpose(0, 1) @ keys.transpose(1, 2)) * (head_dim**-0.5 if scale is None else scale)
    empty = ~mask.any(1)[:, None]
    scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return (weights @ values).transpose(0, 1), scores.detach().logsumexp(-1).T.float()


def block_attention_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SequenceLayout,
    grad: Tensor,
    *,
    scale: float | None = None,
    from_lse: bool = False,
    order: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) by ``ds = p (dp - <grad, out>)``, the formula of every attention that does not store p.

    Autograd's softmax uses the sum of p dp instead, whose rounding errors cancel those of dp where few keys are seen. An
    attention that never holds a row of p cannot have that, so this is the second baseline of its gradients. ``from_lse``:
    p is ``exp(s - lse)``, whose error grows with |lse|, as in attentions that keep lse alone for the backward.
    """
    factor = q.shape[2] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    parts = []
    for sequence in range(layout.num_sequences):
        slots = slice(int(layout.cu_seqlens[sequence]), int(layout.cu_seqlens[sequence + 1]))
        tokens, dims = (_shuffled(size, order) for size in (slots.stop - slots.start, q.shape[2]))
        queries, keys, values, slopes = (x[slots][tokens][..., dims].transpose(0, 1) for x in (q, k, v, grad))
        keys, values = (x.repeat_interleave(group, 0) for x in (keys, values))
        mask = visible(layout, sequence)[tokens][:, tokens]
        scores = (queries @ keys.mT * factor).masked_fill(~mask, -torch.inf)
        scores = scores.masked_fill(~mask.any(1)[:, None], 0.0)
        weights = (scores - scores.logsumexp(-1, keepdim=True)).exp() if from_lse else scores.softmax(-1)
        weights = weights * mask
        delta = (slopes * (weights @ values)).sum(-1, keepdim=True)
        ds = weights * (slopes @ values.mT - delta) * factor
        grads = (
            ds @ keys,
            *((x.mT @ y).unflatten(0, (-1, group)).sum(1) for x, y in ((ds, queries), (weights, slopes))),
        )
        parts.append([x.transpose(0, 1)[tokens.argsort()][..., dims.argsort()] for x in grads])
    grad_q, grad_k, grad_v = (torch.cat(column) for column in zip(*parts, strict=True))
    return grad_q, grad_k, grad_v


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    key_tiles: PagedKeys,
    step: LayoutStep,
    *,
    scale: float | None = None,
    order: int = 0,
) -> tuple[Tensor, Tensor]:
    """``block_attention`` with the keys gathered from their pages."""
    parts = gather(k_pages, v_pages, page_table, key_tiles, step)
    outs, lses = zip(*(_attend(q[rows], k, v, mask, scale, order) for rows, k, v, mask in parts), strict=True)
    return torch.cat(outs), torch.cat(lses)


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and products in the dtype of ``out_a``."""
    lse = torch.logaddexp(lse_a, lse_b)
    result = torch.zeros_like(out_a)
    for out, side in ((out_a, lse_a), (out_b, lse_b)):
        weight = (side - lse).exp().nan_to_num(0.0).to(out.dtype)[..., None]
        result = result + torch.where(weight == 0, 0.0, out * weight).to(out.dtype)
    return result, lse


def mm_rope(x: Tensor, positions: Tensor, inv_freq: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """Rotation by tables in the dtype of ``x``."""
    inv_freq = inverse_frequencies(x.shape[-1]) if inv_freq is None else inv_freq
    cos, sin = (torch.cat((t, t), -1)[:, None].to(x.dtype) for t in rotation_table(positions, inv_freq, torch.float32))
    first, second = x.chunk(2, -1)
    turned = torch.cat((-second, first), -1) * sin
    return x * cos - turned if inverse else x * cos + turned


def head_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, order: int = 0) -> Tensor:
    """LayerNorm over head_dim with the weights of its group of heads, in the dtype of ``x``."""
    if order:
        tokens, dims = (_shuffled(size, order) for size in (len(x), x.shape[-1]))
        normal = head_norm(x[tokens][..., dims], weight[:, dims], bias[:, dims], eps)
        return normal[tokens.argsort()][..., dims.argsort()]
    repeats = x.shape[1] // weight.shape[0]
    normal = torch.nn.functional.layer_norm(x, (x.shape[-1],), eps=eps)
    return normal * weight.to(x.dtype).repeat_interleave(repeats, 0) + bias.to(x.dtype).repeat_interleave(repeats, 0)


def qk_norm_mm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    positions: Tensor,
    *,
    order: int = 0,
) -> tuple[Tensor, Tensor]:
    """``head_norm``, then ``mm_rope``."""
    q, k = head_norm(q, q_weight, q_bias, order=order), head_norm(k, k_weight, k_bias, order=order)
    return mm_rope(q, positions), mm_rope(k, positions)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, order: int = 0) -> Tensor:
    """Every step in the dtype of ``x``."""
    if order:
        tokens, width = (_shuffled(size, order) for size in x.shape)
        return rms_norm(x[tokens][:, width], weight[width], eps)[tokens.argsort()][:, width.argsort()]
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(x.dtype)


def linear(x: Tensor, weight: Tensor, *, order: int = 0) -> Tensor:
    """One product."""
    tokens, outs, width = (_shuffled(size, order) for size in (len(x), *weight.shape))
    return (x[tokens][:, width] @ weight[outs][:, width].T)[tokens.argsort()][:, outs.argsort()]


def swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor, *, order: int = 0) -> Tensor:
    """``silu`` and the products one by one."""
    return linear(torch.nn.functional.silu(gate) * up, weight, order=order)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, *, order: int = 0) -> Tensor:
    """Per-row losses from all logits at once."""
    if order:
        places, classes, width = (_shuffled(size, order) for size in (len(rows), *weight.shape))
        moved = hidden[:, width], weight[classes][:, width], classes.argsort()[targets[places]], rows[places]
        return linear_cross_entropy(*moved)[places.argsort()]
    logits = hidden[rows] @ weight.T
    return torch.nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
    )


def masked_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, *, order: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean and per-row losses from all logits at once."""
    per_row = linear_cross_entropy(hidden, weight, targets, rows, order=order)
    return per_row.mean(), per_row
