"""Attention under a ``SequenceLayout``: bidirectional inside a frame, causal between frames, packed sequences apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _registry as registry
from . import key_splits

if TYPE_CHECKING:
    from ..layout import SequenceLayout

MAX_HEAD_DIM = 256  # LUMOS_MAX_HEAD_DIM of csrc/include/lumos/attention.h


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of every token to the tokens that ``layout`` lets it see.

    Args:
        q: ``[tokens, heads, head_dim]``, float32 or bfloat16; head_dim a multiple of 32, at most 256. ``cuda``: bfloat16 with
            head_dim 32, 64, 96 or 128, float16 with 64 or 128, float32 with any. ``reference``: float64 too.
        k, v: ``[tokens, kv_heads, head_dim]``; query head h reads key head ``h // (heads // kv_heads)``. Any token and head
            strides; an argument whose last dimension is not contiguous is copied, as on cuda is one whose first element or
            strides are not at multiples of 16 bytes.
        layout: its ``num_tokens`` must be the number of tokens.
        scale: factor of the scores; default ``1 / sqrt(head_dim)``.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        ``out`` like ``q``, contiguous, and ``lse`` float32 ``[tokens, heads]``: the natural logarithm of the sum of the exponentials
        of the scaled scores. ``out`` is differentiable, ``lse`` is not. A token that sees nothing gets 0 and -inf. Keys that a
        token does not see have no influence on it, NaN included. On one backend and instruction set the bits of a token's
        results and gradients depend on its own sequence alone, not on packing or the number of threads.

    Raises:
        TypeError: wrong dtype, or ``layout`` is no SequenceLayout. ValueError: shapes, devices or a layout that do not agree.
    """
    op = "block_attention"
    chosen = registry.select_backend(op, q, backend)
    registry.check_tensor(op, "q", q, dtype=registry.FLOATS_OF[chosen], shape=("tokens", "heads", "head_dim"))
    tokens, heads, head_dim = q.shape
    check_head_dim(op, head_dim)
    for name, tensor in (("k", k), ("v", v)):
        registry.check_tensor(op, name, tensor, dtype=q.dtype, shape=(tokens, "kv_heads", head_dim), device=q.device)
    check_heads(op, heads, k.shape[1], v.shape[1])
    if not hasattr(layout, "intervals") or not hasattr(layout, "schedule"):
        raise TypeError(f"{op}: layout is a {type(layout).__name__}; it must be a SequenceLayout")
    if layout.num_tokens != tokens:
        raise ValueError(f"{op}: layout has {layout.num_tokens} tokens, q has {tokens}; they must be equal")
    if chosen == "reference":
        return registry.reference("attention").block_attention(q, k, v, layout, scale=scale)
    schedule = layout.schedule()
    out, lse, _ = registry.without_autograd(
        torch.ops.lumos._block_attention.default,
        q,
        k,
        v,
        layout.intervals,
        layout.hidden,
        schedule.tiles,
        schedule.row_offsets,
        schedule.row_runs,
        schedule.col_offsets,
        schedule.col_runs,
        head_dim**-0.5 if scale is None else float(scale),
        schedule.split_tokens,
    )
    return out, lse


def check_head_dim(op: str, head_dim: int) -> None:
    """Raises ValueError unless the attention kernels take ``head_dim``."""
    if head_dim <= 0 or head_dim % 32 or head_dim > MAX_HEAD_DIM:
        raise ValueError(f"{op}: head_dim is {head_dim}; it must be a multiple of 32, at most {MAX_HEAD_DIM}")


def check_heads(op: str, heads: int, k_heads: int, v_heads: int) -> None:
    """Raises ValueError unless k and v have the same number of heads and it divides that of q."""
    if k_heads != v_heads:
        raise ValueError(f"{op}: k has {k_heads} heads and v has {v_heads}; they must be equal")
    if k_heads == 0 or heads == 0 or heads % k_heads:
        raise ValueError(f"{op}: q has {heads} heads, k has {k_heads}; the first must be a multiple of the second")


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    hidden: Tensor | None,
    tiles: Tensor,
    row_offsets: Tensor,
    row_runs: Tensor,
    col_offsets: Tensor,
    col_runs: Tensor,
    scale: float,
    split_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (registry.rows_contiguous("block_attention", name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    results = _forward_fake(q)
    schedule = [registry.on_device(x, q) for x in (tiles, row_offsets, row_runs)]
    splits = None
    if split_tokens is not None and registry.uses_cuda("block_attention", q):
        splits = key_splits.of_schedule(split_tokens, tiles, row_offsets, row_runs)
    cut = key_splits.arguments(splits, ("tiles", "row_offsets", "row_runs"), q)
    registry.call("block_attention", q, k, v, intervals, hidden, *schedule, scale, *results, *cut)
    return results


def _forward_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = q.shape[:2]
    return q.new_empty(q.shape), q.new_empty(rows, dtype=torch.float32), q.new_empty((*rows, 2), dtype=torch.float32)


def _gradients(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    row_state: Tensor,
    intervals: Tensor,
    hidden: Tensor | None,
    tiles: Tensor,
    row_offsets: Tensor,
    row_runs: Tensor,
    col_offsets: Tensor,
    col_runs: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "block_attention_backward"
    named = (("grad_out", grad_out), ("q", q), ("k", k), ("v", v))
    grad_out, q, k, v = (registry.rows_contiguous(op, name, x) for name, x in named)
    out, row_state = out.contiguous(), row_state.contiguous()
    schedule = [registry.on_device(x, q) for x in (tiles, row_offsets, row_runs, col_offsets, col_runs)]
    grads = _backward_fake(grad_out, q, k, v)
    workspace = None
    if registry.uses_cuda(op, q):
        num_bytes = registry.extension().block_attention_backward_workspace(*q.shape[:2])
        workspace = q.new_empty(num_bytes // 4, dtype=torch.float32)
    registry.call(op, grad_out, q, k, v, out, row_state, intervals, hidden, *schedule, scale, *grads, workspace)
    return grads


def _backward_fake(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, scale, _ = inputs
    q, k, v, *schedule = tensors
    out, lse, row_state = output
    ctx.save_for_backward(q, k, v, out, row_state, *schedule)
    ctx.scale = scale
    ctx.mark_non_differentiable(lse, row_state)


def _backward(ctx: Any, grad_out: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, row_state, *schedule = ctx.saved_tensors
    grads = torch.ops.lumos._block_attention_backward(grad_out, q, k, v, out, row_state, *schedule, ctx.scale)
    return (*grads, *(None for _ in schedule), None, None)


_SCHEDULE = (
    "Tensor intervals, Tensor? hidden, Tensor tiles, Tensor row_offsets, Tensor row_runs, "
    "Tensor col_offsets, Tensor col_runs, float scale"
)
registry.define(
    f"_block_attention(Tensor q, Tensor k, Tensor v, {_SCHEDULE}, Tensor? split_tokens=None)"
    " -> (Tensor, Tensor, Tensor)",
    cpu=_forward,
    cuda=_forward,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
registry.define(
    f"_block_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor row_state, {_SCHEDULE})"
    " -> (Tensor, Tensor, Tensor)",
    cpu=_gradients,
    cuda=_gradients,
    fake=_backward_fake,
)
