"""Head projection and cross-entropy on chosen rows, without the logits in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _registry as registry


def masked_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor,
    *,
    chunk_rows: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of ``softmax(hidden[rows] @ weight.T)`` against ``targets``: the AR-DF loss on masked codes.

    Logits exist for one chunk of rows at a time and are computed again in the backward (kept, if all rows are one
    chunk). Matrix products run in the dtype of the inputs, or that of autocast where it is on; softmax, loss and the
    sums of the gradients in fp32 at least. Both backends are the torch implementation of ``lumos_engine.reference``.

    Args:
        hidden: ``[tokens, width]``, float32 or bfloat16 or float64; only ``rows`` of it are read.
        weight: ``[columns, width]``, the rows of the head that belong to the visual codes; of the dtype of
            ``hidden`` unless autocast is on.
        targets: int64 ``[n]`` in 0 .. columns - 1.
        rows: int64 ``[n]``, indices of tokens; one may occur several times.
        chunk_rows: rows of a chunk; default as many as have 64 MiB of fp32 logits.
        backend: ``"reference"`` or ``"cpu"``; default by device.

    Returns:
        The mean over ``rows`` (0 for no rows) and the loss of each row, ``[n]``; fp32, or fp64 for fp64 inputs. Both
        are differentiable once.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, ``chunk_rows`` below 1, a target or
        row out of range.
    """
    op = "masked_linear_cross_entropy"
    floats = (*registry.FLOATS, torch.float64)
    registry.check_tensor(op, "hidden", hidden, dtype=floats, shape=("tokens", "width"))
    registry.select_backend(op, hidden, backend)
    tokens, width = hidden.shape
    dtypes = floats if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
    registry.check_tensor(op, "weight", weight, dtype=dtypes, shape=("columns", width), device=hidden.device)
    registry.check_tensor(op, "targets", targets, dtype=torch.int64, shape=("n",), device=hidden.device)
    registry.check_tensor(op, "rows", rows, dtype=torch.int64, shape=tuple(targets.shape), device=hidden.device)
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"{op}: chunk_rows is {chunk_rows}; it must be at least 1")
    if len(rows) and not torch.compiler.is_compiling():
        for name, values, limit in (("targets", targets, len(weight)), ("rows", rows, tokens)):
            low, high = (int(bound) for bound in torch.aminmax(values))
            if low < 0 or high >= limit:
                raise ValueError(f"{op}: {name} are {low}..{high}; they must be in 0..{limit - 1}")
    return registry.reference("loss").masked_linear_cross_entropy(hidden, weight, targets, rows, chunk_rows=chunk_rows)
