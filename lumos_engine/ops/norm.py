"""Root-mean-square normalisation of rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _registry as registry

_OP = "rms_norm"


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * weight`` over the last dimension (arXiv 1910.07467). Differentiable in both.

    Computed in fp32 and rounded once. On one instruction set the bits of a row's result and of its gradient depend on
    that row alone; the gradient of the weight is equal from run to run and for any number of threads.

    Args:
        x: ``[tokens, width]``, float32 or bfloat16 (elsewhere than on the CPU, and in the reference: float16 and
            float64 too). Any row stride; a last dimension that is not contiguous costs a copy.
        weight: ``[width]``, floating-point, read in fp32.
        eps: added to the mean of the squares.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device. There is no CUDA kernel: there, and for
            other dtypes on the CPU, it is torch's ``rms_norm``, whose promises hold then.

    Returns:
        Like ``x``, contiguous.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, or an ``eps`` that is negative or not
        finite.
    """
    floats = registry.FLOATS_OF["reference"]
    registry.check_tensor(_OP, "x", x, dtype=floats, shape=("tokens", "width"))
    registry.check_tensor(_OP, "weight", weight, dtype=floats, shape=(x.shape[1],), device=x.device)
    if not 0 <= eps < math.inf:
        raise ValueError(f"{_OP}: eps is {eps}; it must be finite and not negative")
    if registry.leaves_to_torch(x, backend):
        return torch.nn.functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    chosen = registry.select_backend(_OP, x, backend)
    if chosen == "reference":
        return registry.reference("norm").rms_norm(x, weight, eps)
    registry.check_tensor(_OP, "x", x, dtype=registry.FLOATS, shape=("tokens", "width"))
    return torch.ops.lumos._rms_norm(x, weight.float(), float(eps))


def _forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = registry.rows_contiguous(_OP, "x", x)
    out = x.new_empty(x.shape)
    registry.call(_OP, x, weight.contiguous(), out, eps)
    return out


def _backward_op(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    grad, x = (registry.rows_contiguous(_OP, name, tensor) for name, tensor in (("grad", grad), ("x", x)))
    grad_x, grad_weight = x.new_empty(x.shape), weight.new_empty(weight.shape)
    registry.call("rms_norm_backward", grad, x, weight.contiguous(), grad_x, grad_weight, eps)
    return grad_x, grad_weight


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    # The scale of a row is not kept: the backward reads x anyway, and finds it again.
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.lumos._rms_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


registry.define(
    "_rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    cpu=_forward,
    fake=lambda x, weight, eps: x.new_empty(x.shape),
    setup_context=_setup_context,
    backward=_backward,
)
registry.define(
    "_rms_norm_backward(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    cpu=_backward_op,
    fake=lambda grad, x, weight, eps: (x.new_empty(x.shape), weight.new_empty(weight.shape)),
)
