"""Head projection and cross-entropy on chosen rows, without the logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _registry as registry

_OP = "masked_linear_cross_entropy"
_KERNEL = "linear_cross_entropy"
_TILE_COLUMNS = 256  # LUMOS_LOSS_TILE_COLUMNS of csrc/include/lumos/linear_cross_entropy.h


def masked_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor,
    *,
    max_logits: int = 2**24,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of ``softmax(hidden[rows] @ weight.T)`` against ``targets``: the AR-DF loss on masked codes.

    At most ``max_logits`` logits exist at a time: of a block of columns on cpu and cuda, of a chunk of rows in the
    reference. The backward computes them again, unless they all fit: then they are kept. Matrix products are torch's,
    in the dtype of the inputs or that of autocast where it is on; softmax and loss are fp32 at least, and so are the
    sums of the gradients over blocks, chunks and rows that occur several times. No second copy of the gradient of
    ``weight`` is made on cpu and cuda; float64 goes to the reference.

    On cuda nobody waits for the GPU to look at targets and rows. A target out of range makes the loss and the gradient of its
    row NaN, and so the mean; a row out of range is torch's to find, as in ``hidden[rows]``: it stops the GPU's context.

    Args:
        hidden: ``[tokens, width]``, float32, bfloat16 or float64 (cuda and the reference: float16 too); only ``rows`` of it are read.
        weight: ``[columns, width]``, the rows of the head that belong to the visual codes, any strides; of the dtype
            of ``hidden`` unless autocast is on.
        targets: int64 ``[n]`` in 0 .. columns - 1.
        rows: int64 ``[n]``, indices of tokens; one may occur several times.
        max_logits: at least 1; blocks have no less than 256 columns, chunks no less than one row.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        The mean over ``rows`` (0 for no rows) and the loss of each row, ``[n]``; fp32, or fp64 for fp64 inputs. Both
        are differentiable once. Run to run and over thread counts, results and gradients have the same bits wherever
        torch's matrix products have.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, ``max_logits`` below 1, or, not
        on cuda, a target or row out of range.
    """
    chosen = registry.select_backend(_OP, hidden, backend, _KERNEL) if isinstance(hidden, Tensor) else "reference"
    floats = tuple(dict.fromkeys((*registry.FLOATS_OF[chosen], torch.float64)))
    registry.check_tensor(_OP, "hidden", hidden, dtype=floats, shape=("tokens", "width"))
    autocast = torch.is_autocast_enabled(hidden.device.type)
    dtypes = floats if autocast else hidden.dtype
    registry.check_tensor(_OP, "weight", weight, dtype=dtypes, shape=("columns", hidden.shape[1]), device=hidden.device)
    registry.check_tensor(_OP, "targets", targets, dtype=torch.int64, shape=("n",), device=hidden.device)
    registry.check_tensor(_OP, "rows", rows, dtype=torch.int64, shape=tuple(targets.shape), device=hidden.device)
    if max_logits < 1:
        raise ValueError(f"{_OP}: max_logits is {max_logits}; it must be at least 1")
    if autocast:
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if chosen == "reference" or hidden.dtype not in registry.FLOATS_OF[chosen]:
        if not torch.compiler.is_compiling():
            _check_indices(hidden, weight, targets, rows)
        return registry.reference("loss").masked_linear_cross_entropy(
            hidden, weight, targets, rows, max_logits=max_logits
        )
    per_row = torch.ops.lumos._masked_linear_cross_entropy(hidden, weight, targets, rows, max_logits)[0]
    return per_row.sum() / max(len(rows), 1), per_row


def _check_indices(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> None:
    if not len(rows):
        return
    for name, values, limit in (("targets", targets, len(weight)), ("rows", rows, len(hidden))):
        low, high = (int(bound) for bound in torch.aminmax(values))
        if low < 0 or high >= limit:
            raise ValueError(f"{_OP}: {name} are {low}..{high}; they must be in 0..{limit - 1}")


def _fits(num_rows: int, num_columns: int, max_logits: int) -> bool:
    return num_rows * num_columns <= max_logits


def _block_columns(num_rows: int, num_columns: int, max_logits: int) -> int:
    """Columns of a block; blocks begin at multiples of the kernel's tile."""
    if _fits(num_rows, num_columns, max_logits):
        return max(num_columns, 1)
    return max(max_logits // num_rows // _TILE_COLUMNS, 1) * _TILE_COLUMNS


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, max_logits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not registry.uses_cuda(_KERNEL, hidden):
        _check_indices(hidden, weight, targets, rows)
    elif len(rows) and not len(weight):
        raise ValueError(f"{_OP}: weight has no rows; {len(rows)} targets need one at least")
    per_row, row_max, row_sum, kept = _forward_fake(hidden, weight, targets, rows, max_logits)
    n, columns = len(rows), len(weight)
    block = _block_columns(n, columns, max_logits)
    chosen, targets = hidden[rows], targets.contiguous()
    memory = _logits_memory(hidden, n, 0 if kept.numel() else block)
    with torch.autocast(hidden.device.type, enabled=False):
        for begin in range(0, columns, block):
            part = weight[begin : begin + block]
            logits = kept if kept.numel() else _logits(memory, n, len(part))
            torch.mm(chosen, part.T, out=logits)
            is_last = begin + len(part) == columns
            registry.call(_KERNEL, logits, targets, begin, is_last, per_row, row_max, row_sum)
    return per_row, row_max, row_sum, kept


def _row_stride(like: Tensor, num_columns: int) -> int:
    """Elements from one row of logits to the next; on cuda a multiple of 16 bytes."""
    unit = 16 // like.element_size() if registry.uses_cuda(_KERNEL, like) else 1
    return max(-(-num_columns // unit), 1) * unit


def _logits_memory(like: Tensor, num_rows: int, num_columns: int) -> Tensor:
    return like.new_empty(num_rows * _row_stride(like, num_columns))


def _logits(memory: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """The beginning of ``memory`` as a matrix."""
    stride = _row_stride(memory, num_columns)
    if (
        stride > num_columns
    ):  # torch's product in bf16 on CPUs reads one number behind an odd row, times 0: NaN if it is NaN
        memory[: num_rows * stride].view(num_rows, stride)[:, num_columns:] = 0
    return memory.as_strided((num_rows, num_columns), (stride, 1))


def _forward_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, max_logits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, columns = rows.shape[0], weight.shape[0]  # len() would make them constants of a compiled graph
    per_row, row_max, row_sum = (hidden.new_empty(n, dtype=torch.float32) for _ in range(3))
    if not _fits(n, columns, max_logits):
        return per_row, row_max, row_sum, hidden.new_empty((0, 0))
    return per_row, row_max, row_sum, hidden.new_empty_strided((n, columns), (_row_stride(hidden, columns), 1))


def _backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor,
    row_max: Tensor,
    row_sum: Tensor,
    kept: Tensor,
    max_logits: int,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    n, columns = len(rows), len(weight)
    block = max(1, min(_block_columns(n, columns, max_logits), columns))
    grad, targets, chosen = grad.contiguous(), targets.contiguous(), hidden[rows]
    kept = registry.rows_contiguous(_KERNEL, "kept", kept)
    # On CPUs torch's bf16 product is twice as slow when its first matrix is transposed: there grad_weight is made transposed.
    transposed = need_weight and chosen.dtype == torch.bfloat16 and not registry.uses_cuda(_KERNEL, hidden)
    chosen_t = chosen.T.contiguous() if transposed else None
    grad_weight = weight.new_empty(weight.shape if need_weight else 0)
    grad_chosen: Tensor | None = None
    memory = _logits_memory(hidden, n, block)
    with torch.autocast(hidden.device.type, enabled=False):
        for begin in range(0, columns, block):
            part = weight[begin : begin + block]
            grad_logits = _logits(memory, n, len(part))
            logits = kept if kept.numel() else torch.mm(chosen, part.T, out=grad_logits)
            registry.call(
                "linear_cross_entropy_backward", grad, logits, targets, begin, row_max, row_sum, grad_logits
            )  # fmt: skip
            if need_hidden:
                product = torch.mm(grad_logits, part)
                grad_chosen = product.float() if grad_chosen is None else grad_chosen.add_(product)
                del product
            if chosen_t is not None:
                grad_weight[begin : begin + block] = torch.mm(chosen_t, grad_logits).T
            elif need_weight:
                torch.mm(grad_logits.T, chosen, out=grad_weight[begin : begin + block])
    del memory, chosen, chosen_t
    if not need_hidden:
        return hidden.new_empty(0), grad_weight
    grad_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32)
    if grad_chosen is not None:
        if grad_hidden.is_cuda:  # where index_add_ has atomics, and index_put_ sorts
            grad_hidden.index_put_((rows,), grad_chosen, accumulate=True)
        else:
            grad_hidden.index_add_(0, rows, grad_chosen)
    return grad_hidden.to(hidden.dtype), grad_weight


def _backward_fake(grad: Tensor, hidden: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    need_hidden, need_weight = others[-2:]
    return hidden.new_empty(hidden.shape if need_hidden else 0), weight.new_empty(weight.shape if need_weight else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.max_logits = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _autograd(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    grads = torch.ops.lumos._masked_linear_cross_entropy_backward(grad, *ctx.saved_tensors, ctx.max_logits, *needs)
    return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), None, None, None


_INPUTS = "Tensor hidden, Tensor weight, Tensor targets, Tensor rows"
registry.define(
    f"_masked_linear_cross_entropy({_INPUTS}, int max_logits) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_forward,
    cuda=_forward,
    kernel=_KERNEL,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_autograd,
)
registry.define(
    f"_masked_linear_cross_entropy_backward(Tensor grad, {_INPUTS}, Tensor row_max, Tensor row_sum, Tensor kept, "
    "int max_logits, bool need_hidden, bool need_weight) -> (Tensor, Tensor)",
    cpu=_backward,
    cuda=_backward,
    kernel=_KERNEL,
    fake=_backward_fake,
)
