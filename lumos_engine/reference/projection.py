"""Linear layers: alone, and behind the activation of SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``."""
    return x @ weight.T


def swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    """``(silu(gate) * up) @ weight.T`` (arXiv 2002.05202), the factor in front in fp32 at least and rounded once."""
    gate32, up32 = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (gate, up))
    return (gate32 * gate32.sigmoid() * up32).to(gate.dtype) @ weight.T
