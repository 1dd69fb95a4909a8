"""Head projection and cross-entropy on chosen rows, in chunks, without the logits of all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _MaskedLinearCrossEntropy(torch.autograd.Function):
    """Per-row losses. The backward computes the logits of each chunk again; those of a single chunk are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, chunk_rows: int) -> Tensor:
        losses, kept = [], None
        for begin in range(0, len(rows), chunk_rows):
            chunk = slice(begin, begin + chunk_rows)
            logits = _logits(hidden, weight, rows[chunk])
            losses.append(torch.nn.functional.cross_entropy(logits, targets[chunk], reduction="none"))
            kept = logits if len(rows) <= chunk_rows else None
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        ctx.save_for_backward(hidden, weight, targets, rows, kept)
        ctx.chunk_rows = chunk_rows
        return torch.cat(losses) if losses else hidden.new_empty(0, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, rows, kept = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        wide = grad.dtype  # sums over rows and chunks are kept in fp32 at least
        grad_hidden = torch.zeros(hidden.shape, dtype=wide, device=hidden.device) if need_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if need_weight else None
        for begin in range(0, len(rows), ctx.chunk_rows):
            chunk = slice(begin, begin + ctx.chunk_rows)
            logits = _logits(hidden, weight, rows[chunk]) if kept is None else kept
            grad_logits = logits.softmax(-1)  # exp(logits - lse) would round at the size of the logits
            grad_logits.scatter_add_(1, targets[chunk, None], grad_logits.new_full((len(grad_logits), 1), -1.0))
            grad_logits.mul_(grad[chunk, None])
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                # In the order of operands that autograd takes: of a single row, torch sums grad_logits @ weight worse.
                grad_hidden.index_add_(0, rows[chunk], (weight.T @ grad_logits.T).T.to(wide))
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows[chunk]]
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None, None, None,
        )  # fmt: skip


def _logits(hidden: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    logits = hidden[rows] @ weight.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def masked_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, *, max_logits: int = 2**24
) -> tuple[Tensor, Tensor]:
    """See ``lumos_engine.ops.masked_linear_cross_entropy``."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        chunk_rows = max(1, max_logits // max(len(weight), 1))
        per_row = _MaskedLinearCrossEntropy.apply(hidden, weight, targets, rows, chunk_rows)  # type: ignore[no-untyped-call]
        return per_row.sum() / max(len(rows), 1), per_row
