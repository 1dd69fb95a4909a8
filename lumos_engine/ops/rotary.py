"""MM-RoPE: rotary embedding of (t, h, w) positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _registry as registry

_tables: dict[tuple[int, float], Tensor] = {}


# A compiled graph holds the table; computed in it, its bits might differ.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    table = _tables.get((head_dim, theta))
    if table is None:
        with torch.inference_mode(False):  # a table made while generating must serve training too
            table = registry.reference("rotary").inverse_frequencies(head_dim, theta)
        _tables[head_dim, theta] = table
    return table


def inverse_frequencies(head_dim: int, theta: float = 10000.0) -> Tensor:
    """``theta ** (-2 f / head_dim)`` for f = 0 .. head_dim/2 - 1: fp32 ``[head_dim / 2]`` on the CPU, a fresh copy.

    Raises:
        ValueError: ``head_dim`` not a positive multiple of 32, or ``theta`` not positive and finite.
    """
    registry.check_head_dim("inverse_frequencies", head_dim)
    if not (theta > 0 and math.isfinite(theta)):
        raise ValueError(f"inverse_frequencies: theta is {theta}; it must be positive and finite")
    return _inverse_frequencies(head_dim, float(theta)).clone()


def frequencies_at(x: Tensor, inv_freq: Tensor | None) -> Tensor:
    """``inv_freq``, or its default where ``x`` lies: copied there once, for nobody shall wait for the GPU at each call."""
    if inv_freq is None:
        inv_freq = registry.on_device(_inverse_frequencies(x.shape[-1], 10000.0), x)
    return inv_freq.contiguous()


def mm_rope(
    x: Tensor,
    positions: Tensor,
    inv_freq: Tensor | None = None,
    *,
    inverse: bool = False,
    parity: bool = False,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Rotate queries or keys by their (t, h, w) positions (arXiv 2507.08801, section 3.2).

    Channels c and c + head_dim/2 form a pair, turned by the angle ``position * inv_freq[c]``. Frequency index c
    uses, by c mod 16, the axis ``t t t t h h w w h h w w h h w w``. The angle is the fp32 product; its cosine and
    sine are accurate over the whole int32 range that fp32 represents exactly (2^24). Text is the case t = h = w.

    Args:
        x: ``[tokens, heads, head_dim]``, float32 or bfloat16 (cuda: float16 too; the reference: that and float64);
            head_dim a multiple of 32. Any token and head strides; a last dimension that is not contiguous costs a copy,
            as on cuda do a first element or strides that are not at multiples of 16 bytes.
        positions: int32 ``[tokens, 3]``.
        inv_freq: float32 ``[head_dim / 2]``; default ``inverse_frequencies(head_dim)``.
        inverse: rotate by the negative angle, which undoes the rotation and is its gradient.
        parity: round cosine and sine to the dtype of ``x``, as the original does.
        inplace: overwrite ``x`` and return it. Has no gradient.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        The rotated tensor: contiguous and like ``x``, or ``x`` itself if ``inplace``.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device, or ``inplace`` on an ``x`` that would cost a copy.
        RuntimeError: ``inplace`` while a gradient is asked for.
    """
    op = "mm_rope"
    chosen = registry.select_backend(op, x, backend) if isinstance(x, Tensor) else "reference"
    registry.check_tensor(op, "x", x, dtype=registry.FLOATS_OF[chosen], shape=("tokens", "heads", "head_dim"))
    tokens, _, head_dim = x.shape
    registry.check_head_dim(op, head_dim)
    registry.check_tensor(op, "positions", positions, dtype=torch.int32, shape=(tokens, 3), device=x.device)
    if inv_freq is not None:
        registry.check_tensor(op, "inv_freq", inv_freq, dtype=torch.float32, shape=(head_dim // 2,), device=x.device)
    if inplace:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(f"{op}: x requires a gradient, which inplace=True cannot give; pass inplace=False")
        if x.stride(-1) != 1:
            raise ValueError(f"{op}: x has strides {x.stride()}; inplace=True needs a contiguous last dimension")
    if chosen == "reference":
        return registry.reference("rotary").mm_rope(
            x, positions, frequencies_at(x, inv_freq), inverse=inverse, parity=parity, inplace=inplace
        )
    if inplace:
        torch.ops.lumos._mm_rope_(x, positions, inv_freq, inverse, parity)
        return x
    return torch.ops.lumos._mm_rope(x, positions, inv_freq, inverse, parity)


def _rotate(x: Tensor, positions: Tensor, inv_freq: Tensor | None, out: Tensor, inverse: bool, parity: bool) -> None:
    registry.call("mm_rope", x, positions.contiguous(), frequencies_at(x, inv_freq), out, inverse, parity)


def _mm_rope(x: Tensor, positions: Tensor, inv_freq: Tensor | None, inverse: bool, parity: bool) -> Tensor:
    x = registry.rows_contiguous("mm_rope", "x", x)
    out = _mm_rope_fake(x, positions, inv_freq, inverse, parity)
    _rotate(x, positions, inv_freq, out, inverse, parity)
    return out


def _mm_rope_fake(x: Tensor, positions: Tensor, inv_freq: Tensor | None, inverse: bool, parity: bool) -> Tensor:
    return x.new_empty(x.shape)


def _mm_rope_inplace(x: Tensor, positions: Tensor, inv_freq: Tensor | None, inverse: bool, parity: bool) -> None:
    _rotate(x, positions, inv_freq, x, inverse, parity)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, positions, inv_freq, ctx.inverse, ctx.parity = inputs
    ctx.save_for_backward(positions, inv_freq)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    positions, inv_freq = ctx.saved_tensors
    grad_x = torch.ops.lumos._mm_rope(grad, positions, inv_freq, not ctx.inverse, ctx.parity)
    return grad_x, None, None, None, None


registry.define(
    "_mm_rope(Tensor x, Tensor positions, Tensor? inv_freq, bool inverse, bool parity) -> Tensor",
    cpu=_mm_rope,
    cuda=_mm_rope,
    fake=_mm_rope_fake,
    setup_context=_setup_context,
    backward=_backward,
)
registry.define(
    "_mm_rope_(Tensor(a!) x, Tensor positions, Tensor? inv_freq, bool inverse, bool parity) -> ()",
    cpu=_mm_rope_inplace,
    cuda=_mm_rope_inplace,
    fake=lambda x, positions, inv_freq, inverse, parity: None,
)
