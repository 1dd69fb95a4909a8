"""Combine two attention results over disjoint keys."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _registry as registry


def merge_attention(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the results over each of them.

    ``lse = log(exp(lse_a) + exp(lse_b))`` and ``out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b``. A side that saw
    nothing (``lse = -inf``) contributes exactly nothing; if neither saw anything, ``out = 0`` and ``lse = -inf``.

    Args:
        out_a, out_b: ``[tokens, heads, head_dim]``, float32 or bfloat16 (cuda: float16 too; the reference: that and float64);
            head_dim a multiple of 32. Strides as ``x`` of ``mm_rope``.
        lse_a, lse_b: ``[tokens, heads]`` float32, natural logarithms as ``block_attention`` returns them.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        ``out`` like ``out_a`` and ``lse`` float32 ``[tokens, heads]``. Differentiable in the reference alone.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree.
    """
    op = "merge_attention"
    chosen = registry.select_backend(op, out_a, backend) if isinstance(out_a, Tensor) else "reference"
    registry.check_tensor(op, "out_a", out_a, dtype=registry.FLOATS_OF[chosen], shape=("tokens", "heads", "head_dim"))
    registry.check_head_dim(op, out_a.shape[2])
    rows = tuple(out_a.shape[:2])
    registry.check_tensor(op, "out_b", out_b, dtype=out_a.dtype, shape=tuple(out_a.shape), device=out_a.device)
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        registry.check_tensor(op, name, lse, dtype=(torch.float32, torch.float64), shape=rows, device=out_a.device)
    if chosen == "reference":
        return registry.reference("merge").merge_attention(out_a, lse_a, out_b, lse_b)
    return torch.ops.lumos._merge_attention(out_a, lse_a, out_b, lse_b)


def _merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    out_a = registry.rows_contiguous("merge_attention", "out_a", out_a)
    out_b = registry.rows_contiguous("merge_attention", "out_b", out_b)
    lse_a, lse_b = lse_a.float().contiguous(), lse_b.float().contiguous()
    out, lse = _merge_attention_fake(out_a, lse_a, out_b, lse_b)
    registry.call("merge_attention", out_a, lse_a, out_b, lse_b, out, lse)
    return out, lse


def _merge_attention_fake(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    return out_a.new_empty(out_a.shape), out_a.new_empty(out_a.shape[:2], dtype=torch.float32)


registry.define(
    "_merge_attention(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) -> (Tensor, Tensor)",
    cpu=_merge_attention,
    cuda=_merge_attention,
    fake=_merge_attention_fake,
)
