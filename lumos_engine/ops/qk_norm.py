"""Per-head LayerNorm of queries and keys, then MM-RoPE, and both on the way into a paged cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _registry as registry
from .pages import check_pages, check_slots
from .rotary import frequencies_at


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

    Computed in fp32 and rounded once. On one backend and instruction set the bits of a token's results and of its
    gradients depend on that token alone; gradients of weights are equal from run to run and for any number of threads.

    Args:
        q: ``[tokens, heads, head_dim]``. k: ``[tokens, kv_heads, head_dim]``, the same dtype. As ``x`` of ``mm_rope``;
            on cuda head_dim is at most 256.
        q_weight, q_bias, k_weight, k_bias: ``[rows, head_dim]``, floating-point; head j uses row ``j // (heads //
            rows)``. The cpu and cuda backends read them in fp32.
        positions, inv_freq, parity: as in ``mm_rope``.
        eps: added to the variance.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        The normalised and rotated q and k, contiguous.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, rows that do not divide the heads, or
        an ``eps`` that is negative or not finite.
    """
    weights = (q_weight, q_bias, k_weight, k_bias)
    chosen = _check("qk_norm_mm_rope", q, k, weights, positions, inv_freq, eps, backend)
    if chosen == "reference":
        return registry.reference("qk_norm").qk_norm_mm_rope(
            q, k, *weights, positions, frequencies_at(q, inv_freq), eps=eps, parity=parity
        )
    weights32 = (weight.float() for weight in weights)
    return torch.ops.lumos._qk_norm_mm_rope(q, k, *weights32, positions, inv_freq, float(eps), parity)


def qk_norm_mm_rope_paged_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    positions: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    inv_freq: Tensor | None = None,
    *,
    eps: float = 1e-5,
    parity: bool = False,
    backend: str | None = None,
) -> Tensor:
    """``qk_norm_mm_rope``, then ``paged_write`` of its k and of ``v``, in one pass over memory: the same bits.

    Args:
        v: like ``k``. k_pages, v_pages, slots: as in ``paged_write``; the pages are written in place.
        The others: as in ``qk_norm_mm_rope``.

    Returns:
        The normalised and rotated q, contiguous. Nothing here has a gradient.

    Raises:
        TypeError, ValueError: as ``qk_norm_mm_rope`` and ``paged_write``; nothing has been written then. On cuda k and
        v of a token whose slot is outside the pages are left out.
    """
    op = "qk_norm_mm_rope_paged_write"
    weights = (q_weight, q_bias, k_weight, k_bias)
    chosen = _check(op, q, k, weights, positions, inv_freq, eps, backend)
    check_pages(op, k, v, k_pages, v_pages, slots)
    q, k, v, *weights32 = (tensor.detach() for tensor in (q, k, v, *weights))
    if chosen == "reference":
        check_slots(op, slots, k_pages)
        return registry.reference("qk_norm").qk_norm_mm_rope_paged_write(
            q, k, v, *weights32, positions, k_pages, v_pages, slots, frequencies_at(q, inv_freq), eps=eps, parity=parity
        )
    weights32 = [weight.float() for weight in weights32]
    return torch.ops.lumos._qk_norm_mm_rope_paged_write(
        q, k, v, *weights32, positions, inv_freq, k_pages, v_pages, slots, float(eps), parity
    )


def _check(
    op: str,
    q: Tensor,
    k: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    positions: Tensor,
    inv_freq: Tensor | None,
    eps: float,
    backend: str | None,
) -> str:
    """The backend."""
    chosen = registry.select_backend(op, q, backend) if isinstance(q, Tensor) else "reference"
    registry.check_tensor(op, "q", q, dtype=registry.FLOATS_OF[chosen], shape=("tokens", "heads", "head_dim"))
    tokens, _, head_dim = q.shape
    registry.check_head_dim(op, head_dim)
    registry.check_tensor(op, "k", k, dtype=q.dtype, shape=(tokens, "kv_heads", head_dim), device=q.device)
    floats = registry.FLOATS_OF["reference"]
    for name, x, weight, bias in (("q", q, *weights[:2]), ("k", k, *weights[2:])):
        registry.check_tensor(op, f"{name}_weight", weight, dtype=floats, shape=("rows", head_dim), device=q.device)
        registry.check_tensor(op, f"{name}_bias", bias, dtype=floats, shape=tuple(weight.shape), device=q.device)
        if len(weight) == 0 or x.shape[1] % len(weight):
            raise ValueError(
                f"{op}: {name}_weight has {len(weight)} rows; their number must divide the {x.shape[1]} heads of {name}"
            )
    registry.check_tensor(op, "positions", positions, dtype=torch.int32, shape=(tokens, 3), device=q.device)
    if inv_freq is not None:
        registry.check_tensor(op, "inv_freq", inv_freq, dtype=torch.float32, shape=(head_dim // 2,), device=q.device)
    if not 0 <= eps < math.inf:
        raise ValueError(f"{op}: eps is {eps}; it must be finite and not negative")
    return chosen


def _forward(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *tables, inv_freq, eps, parity = rest
    q, k = (registry.rows_contiguous("qk_norm_mm_rope", name, x) for name, x in (("q", q), ("k", k)))
    results = _forward_fake(q, k)
    tables = [*(table.contiguous() for table in tables), frequencies_at(q, inv_freq)]
    registry.call("qk_norm_mm_rope", q, k, *tables, *results, eps, parity)
    return results


def _forward_fake(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _backward_op(grad_q_out: Tensor, grad_k_out: Tensor, q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *tables, inv_freq, eps, parity = rest
    named = (("grad_q_out", grad_q_out), ("grad_k_out", grad_k_out), ("q", q), ("k", k))
    tensors = [registry.rows_contiguous("qk_norm_mm_rope", name, x) for name, x in named]
    tables = [*(table.contiguous() for table in tables), frequencies_at(q, inv_freq)]
    grads = _backward_fake(*tensors, *tables)
    workspace = registry.workspace("qk_norm_mm_rope_backward", *tensors[2:], *tables[:2])
    registry.call("qk_norm_mm_rope_backward", *tensors, *tables, *grads, workspace, eps, parity)
    return grads


def _backward_fake(
    grad_q_out: Tensor, grad_k_out: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, q_weight, q_weight, k_weight, k_weight))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, q_weight, _, k_weight, _, positions, inv_freq, ctx.eps, ctx.parity = inputs
    # Mean and deviation are not kept: the backward reads q and k anyway, and finds both again.
    ctx.save_for_backward(q, k, q_weight, k_weight, positions, inv_freq)


def _backward(ctx: Any, grad_q_out: Tensor, grad_k_out: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.lumos._qk_norm_mm_rope_backward(grad_q_out, grad_k_out, *ctx.saved_tensors, ctx.eps, ctx.parity)
    return (*grads, None, None, None, None)


def _paged_write(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    *tables, inv_freq, k_pages, v_pages, slots, eps, parity = rest
    named = (("q", q), ("k", k), ("v", v))
    q, k, v = (registry.rows_contiguous("qk_norm_mm_rope_paged_write", name, x) for name, x in named)
    q_out = q.new_empty(q.shape)
    tables = [*(table.contiguous() for table in tables), frequencies_at(q, inv_freq)]
    tensors = (k, v, *tables, k_pages, v_pages, slots.contiguous(), q_out)
    registry.call("qk_norm_mm_rope_paged_write", q, *tensors, eps, parity)
    return q_out


_WEIGHTS = "Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias"
_ROTATION = "Tensor positions, Tensor? inv_freq"
registry.define(
    f"_qk_norm_mm_rope(Tensor q, Tensor k, {_WEIGHTS}, {_ROTATION}, float eps, bool parity) -> (Tensor, Tensor)",
    cpu=_forward,
    cuda=_forward,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
registry.define(
    "_qk_norm_mm_rope_backward(Tensor grad_q_out, Tensor grad_k_out, Tensor q, Tensor k, Tensor q_weight, "
    f"Tensor k_weight, {_ROTATION}, float eps, bool parity) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_op,
    cuda=_backward_op,
    fake=_backward_fake,
)
registry.define(
    f"_qk_norm_mm_rope_paged_write(Tensor q, Tensor k, Tensor v, {_WEIGHTS}, {_ROTATION}, Tensor(a!) k_pages, "
    "Tensor(b!) v_pages, Tensor slots, float eps, bool parity) -> Tensor",
    cpu=_paged_write,
    cuda=_paged_write,
    fake=lambda q, *_: q.new_empty(q.shape),
)
