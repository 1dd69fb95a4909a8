"""Linear layers on torch's matrix products: alone, and behind the activation of SwiGLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _registry as registry

_WORTH_TRANSPOSING = 2**20
"""Weights of fewer elements have their gradient from torch's product as it is: docs/kernels/linear.md."""


def linear(x: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    """``x @ weight.T``, as ``torch.nn.functional.linear``. Differentiable once in both.

    The products are torch's. What differs is the gradient of ``weight`` in bfloat16 on CPUs: torch's product is half as
    fast there when its first matrix is transposed and the weight large, so the smaller matrices are transposed before.

    Args:
        x: ``[tokens, in_features]``. weight: ``[out_features, in_features]``. Both float32 or bfloat16 (elsewhere than
            on the CPU, and in the reference: float16 and float64 too), of one dtype unless autocast is on.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device. Elsewhere than on the CPU, and for other
            dtypes, it is torch's ``linear`` whole.

    Returns:
        ``[tokens, out_features]``.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree.
    """
    op = "linear"
    x, weight = _check(op, {"x": x}, weight)
    if registry.leaves_to_torch(x, backend) or not _wants_gradient(x, weight, backend):
        return torch.nn.functional.linear(x, weight)
    if registry.select_backend(op, x, backend) == "reference":
        return registry.reference("projection").linear(x, weight)
    return torch.ops.lumos._linear(x, weight)


def swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    """``(silu(gate) * up) @ weight.T``: the second half of a SwiGLU MLP (arXiv 2002.05202). Differentiable once in all.

    The factor in front is computed in fp32 and rounded once; the backward computes it again rather than keep it. On one
    instruction set its bits and those of its gradient depend on their element alone; the products are torch's.

    Args:
        gate, up: ``[tokens, width]``, dtypes as of ``linear``. Any row strides; a last dimension that is not contiguous
            costs a copy.
        weight: ``[out_features, width]``.
        backend: as of ``linear``.

    Returns:
        ``[tokens, out_features]``.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree.
    """
    op = "swiglu_linear"
    (gate, up, weight) = _check(op, {"gate": gate, "up": up}, weight)
    if registry.leaves_to_torch(gate, backend):
        return torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, weight)
    if registry.select_backend(op, gate, backend) == "reference":
        return registry.reference("projection").swiglu_linear(gate, up, weight)
    return torch.ops.lumos._swiglu_linear(gate, up, weight)


def _check(op: str, inputs: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    """Inputs and weight, in the dtype of autocast where that is on."""
    floats = registry.FLOATS_OF["reference"]
    name, first = next(iter(inputs.items()))
    registry.check_tensor(op, name, first, dtype=floats, shape=("tokens", "width"))
    autocast = torch.is_autocast_enabled(first.device.type)
    dtypes = floats if autocast else first.dtype
    for other, x in inputs.items():
        registry.check_tensor(op, other, x, dtype=dtypes, shape=tuple(first.shape), device=first.device)
    registry.check_tensor(
        op, "weight", weight, dtype=dtypes, shape=("out_features", first.shape[1]), device=first.device
    )
    tensors = (*inputs.values(), weight)
    return tuple(x.to(torch.get_autocast_dtype(first.device.type)) for x in tensors) if autocast else tensors


def _wants_gradient(x: Tensor, weight: Tensor, backend: str | None) -> bool:
    return backend is not None or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x`` [out_features, in_features] of grad [tokens, out_features] and x [tokens, in_features]."""
    (tokens, outs), ins = grad.shape, x.shape[1]
    if grad.dtype != torch.bfloat16 or outs * ins < _WORTH_TRANSPOSING:
        return grad.T @ x
    if tokens * outs <= (tokens + outs) * ins:
        return transposed(grad) @ x
    return transposed(transposed(x) @ grad)


def transposed(x: Tensor, out: Tensor | None = None) -> Tensor:
    """A transposed copy of x [rows, columns], bfloat16 on the CPU: torch's is slow where rows are many KB apart."""
    x = registry.rows_contiguous("transpose", "x", x)
    out = x.new_empty(x.shape[::-1]) if out is None else out
    registry.call("transpose", x, out)
    return out


def _no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    with _no_autocast():
        return x @ weight.T


def _product_fake(x: Tensor, *others: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], others[-1].shape[0])


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    with _no_autocast():
        return (
            grad @ weight if need_x else x.new_empty(0),
            weight_gradient(grad, x) if need_weight else weight.new_empty(0),
        )


def _linear_backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else 0), weight.new_empty(weight.shape if need_weight else 0)


def _linear_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    grads = torch.ops.lumos._linear_backward(grad, *ctx.saved_tensors, *needs)
    return tuple(g if needed else None for g, needed in zip(grads, needs, strict=True))


def _rows(gate: Tensor, up: Tensor) -> list[Tensor]:
    return [registry.rows_contiguous("swiglu", name, x) for name, x in (("gate", gate), ("up", up))]


def _swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    gate, up = _rows(gate, up)
    product = gate.new_empty(gate.shape)
    registry.call("swiglu", gate, up, product)
    return _linear(product, weight)


def _swiglu_linear_backward(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = _rows(gate, up)
    with _no_autocast():
        grad_up = grad @ weight  # of the product yet
        product, grad_gate = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
        registry.call("swiglu_backward", grad_up, gate, up, product, grad_gate, grad_up)
        return grad_gate, grad_up, weight_gradient(grad, product) if need_weight else weight.new_empty(0)


def _swiglu_linear_backward_fake(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        gate.new_empty(gate.shape),
        up.new_empty(up.shape),
        weight.new_empty(weight.shape if need_weight else 0),
    )


def _swiglu_linear_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_weight = ctx.needs_input_grad[2]
    *grads, grad_weight = torch.ops.lumos._swiglu_linear_backward(grad, *ctx.saved_tensors, need_weight)
    return *grads, grad_weight if need_weight else None


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


registry.define(
    "_linear(Tensor x, Tensor weight) -> Tensor",
    cpu=_linear,
    fake=_product_fake,
    setup_context=_setup_context,
    backward=_linear_autograd,
)
registry.define(
    "_linear_backward(Tensor grad, Tensor x, Tensor weight, bool need_x, bool need_weight) -> (Tensor, Tensor)",
    cpu=_linear_backward,
    fake=_linear_backward_fake,
)
registry.define(
    "_swiglu_linear(Tensor gate, Tensor up, Tensor weight) -> Tensor",
    cpu=_swiglu_linear,
    fake=_product_fake,
    setup_context=_setup_context,
    backward=_swiglu_linear_autograd,
)
registry.define(
    "_swiglu_linear_backward(Tensor grad, Tensor gate, Tensor up, Tensor weight, bool need_weight) -> "
    "(Tensor, Tensor, Tensor)",
    cpu=_swiglu_linear_backward,
    fake=_swiglu_linear_backward_fake,
)
