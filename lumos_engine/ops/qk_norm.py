"""Per-head LayerNorm of queries and keys, then MM-RoPE."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import _registry as registry
from .rotary import mm_rope


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
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """LayerNorm over head_dim of each head of ``q`` and ``k``, then ``mm_rope``. Differentiable in all six.

    The cpu backend composes torch's LayerNorm, in the dtype of ``q``, with the C++ rotation.

    Args:
        q: ``[tokens, heads, head_dim]``. k: ``[tokens, kv_heads, head_dim]``, the same dtype. As ``x`` of ``mm_rope``.
        q_weight, q_bias, k_weight, k_bias: ``[rows, head_dim]``, floating-point; head j uses row ``j // (heads //
            rows)``.
        positions, inv_freq, parity: as in ``mm_rope``.
        eps: added to the variance.
        backend: ``"reference"`` or ``"cpu"``; default by device.

    Returns:
        The normalised and rotated q and k, contiguous.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, or rows that do not divide the heads.
    """
    op = "qk_norm_mm_rope"
    floats = (*registry.FLOATS, torch.float64)
    registry.check_tensor(op, "q", q, dtype=floats, shape=("tokens", "heads", "head_dim"))
    chosen = registry.select_backend(op, q, backend)
    if chosen == "cpu":
        registry.check_tensor(op, "q", q, dtype=registry.FLOATS, shape=("tokens", "heads", "head_dim"))
    tokens, _, head_dim = q.shape
    registry.check_head_dim(op, head_dim)
    registry.check_tensor(op, "k", k, dtype=q.dtype, shape=(tokens, "kv_heads", head_dim), device=q.device)
    for name, x, weight, bias in (("q", q, q_weight, q_bias), ("k", k, k_weight, k_bias)):
        registry.check_tensor(op, f"{name}_weight", weight, dtype=floats, shape=("rows", head_dim), device=q.device)
        registry.check_tensor(op, f"{name}_bias", bias, dtype=floats, shape=tuple(weight.shape), device=q.device)
        if len(weight) == 0 or x.shape[1] % len(weight):
            raise ValueError(
                f"{op}: {name}_weight has {len(weight)} rows; their number must divide the {x.shape[1]} heads of {name}"
            )
    if chosen == "reference":
        return registry.reference("qk_norm").qk_norm_mm_rope(
            q, k, q_weight, q_bias, k_weight, k_bias, positions, inv_freq, eps=eps, parity=parity
        )
    return (
        mm_rope(_head_norm(q, q_weight, q_bias, eps), positions, inv_freq, parity=parity, backend=chosen),
        mm_rope(_head_norm(k, k_weight, k_bias, eps), positions, inv_freq, parity=parity, backend=chosen),
    )


def _head_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    rows, head_dim = weight.shape
    # With fp32 weights torch also sums their gradients in fp32, over all tokens and heads.
    weight, bias = weight.float(), bias.float()
    if rows == 1:
        return functional.layer_norm(x, (head_dim,), weight[0], bias[0], eps).to(x.dtype)
    repeats = x.shape[1] // rows
    normal = functional.layer_norm(x, (head_dim,), eps=eps)
    weight, bias = weight.repeat_interleave(repeats, 0), bias.repeat_interleave(repeats, 0)
    return torch.addcmul(bias, normal, weight).to(x.dtype)
