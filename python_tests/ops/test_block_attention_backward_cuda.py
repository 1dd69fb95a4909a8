"""The CUDA kernels of block_attention's gradients, given the results of their own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.ops import _registry as registry
from lumos_engine.ops import attention  # noqa: F401  (registers torch.ops.lumos._block_attention)
from lumos_engine.reference.mask import visible
from lumos_engine.testing import backends, eager, emulation, poison, strategies, tolerances

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
KERNELS = [
    (BF16, 32),
    (BF16, 64),
    (BF16, 96),
    (BF16, 128),
    (FP16, 64),
    (FP16, 128),
    (FP32, 32),
    (FP32, 96),
    (FP32, 128),
]
NAMES = ("grad_q", "grad_k", "grad_v")
ROWS = 150  # the bound is a multiple of eager torch's largest error, and of few rows that is a matter of luck

pytestmark = pytest.mark.parametrize("backend", ["cuda"])  # skipped where there are no kernels
VIDEO: list[Text | Frame] = [Text(7), Frame(8, 8, newlines=True, header=3, footer=1), Frame(8, 8), Text(70)]


def inputs_of(
    layout: SequenceLayout,
    dtype: torch.dtype = BF16,
    head_dim: int = 64,
    heads: int = 2,
    kv_heads: int = 1,
    seed: int = 0,
) -> list[Tensor]:
    """q, k, v, grad_out"""
    return [
        strategies.randn((layout.num_tokens, count, head_dim), dtype, seed + i)
        for i, count in enumerate((heads, kv_heads, kv_heads, heads))
    ]


def forward(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, scale: float) -> tuple[Tensor, Tensor]:
    """out and row_state of the CUDA kernel, whose scores are rounded as the backward's are."""
    rows = layout.schedule()
    runs = (rows.tiles, rows.row_offsets, rows.row_runs, rows.col_offsets, rows.col_runs)
    with backends.running("cuda") as place:
        tensors = [place(x) for x in (q, k, v, layout.intervals)]
        hidden = None if layout.hidden is None else place(layout.hidden)
        out, _, row_state = torch.ops.lumos._block_attention(*tensors, hidden, *map(place, runs), scale)
    return out, row_state


def gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    layout: SequenceLayout,
    scale: float | None = None,
    schedule: int | None = None,
) -> list[Tensor]:
    """[dq, dk, dv], computed into memory that held NaN."""
    factor = q.shape[2] ** -0.5 if scale is None else scale
    return backward(grad, q, k, v, *forward(q, k, v, layout, factor), layout, factor, schedule)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    row_state: Tensor,
    layout: SequenceLayout,
    factor: float,
    schedule: int | None = None,
) -> list[Tensor]:
    """[dq, dk, dv] from the results of a forward."""
    rows = layout.schedule()
    runs = (rows.tiles, rows.row_offsets, rows.row_runs, rows.col_offsets, rows.col_runs)
    with backends.running("cuda", schedule) as place, poison.poisoned_outputs():
        tensors = [place(x) for x in (grad, q, k, v, out, row_state, layout.intervals)]
        hidden = None if layout.hidden is None else place(layout.hidden)
        found = torch.ops.lumos._block_attention_backward(*tensors, hidden, *map(place, runs), factor)
    return [x.cpu() for x in found]


def assert_within_bound(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    layout: SequenceLayout,
    actual: list[Tensor],
    scale: float | None = None,
) -> None:
    def autograd(function: Any, inputs: tuple[Tensor, ...], out_grad: Tensor, **options: object) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = function(*leaves, layout, scale=scale, **options)[0]
        found = torch.autograd.grad(out, leaves, out_grad, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]

    exact = autograd(ops.block_attention, (q.double(), k.double(), v.double()), grad.double(), backend="reference")
    runs = [autograd(eager.block_attention, (q, k, v), grad, order=order) for order in tolerances.ORDERS]
    for order in tolerances.ORDERS:
        runs.append(list(eager.block_attention_gradients(q, k, v, layout, grad, scale=scale, order=order)))
    for name, result, reference, *baselines in zip(NAMES, actual, exact, *runs, strict=True):
        tolerances.assert_within_bound(result, reference, baselines, name)


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, left, right in zip(NAMES, actual, expected, strict=True):
        tolerances.assert_bitwise_equal(left, right, name)


# ---- values


@given(
    layout=strategies.layouts(),
    kernel=st.sampled_from(KERNELS),
    heads=st.sampled_from([(1, 1), (2, 2), (2, 1), (6, 2)]),
    scale=st.sampled_from([None, 0.3, -1.0, 0.0]),
    orders=st.tuples(*[strategies.memory_orders()] * 4),
    seed=strategies.seeds(),
)
@example(
    layout=SequenceLayout.from_segments([[Text(1)]]),
    kernel=(FP32, 32),
    heads=(1, 1),
    scale=0.3,
    orders=("contiguous",) * 4,
    seed=0,
)
@example(
    layout=SequenceLayout.from_segments([[Text(1)]]),
    kernel=(FP32, 128),
    heads=(1, 1),
    scale=0.3,
    orders=("contiguous",) * 4,
    seed=0,
)
def test_gradients_are_within_the_bound(
    layout: SequenceLayout,
    kernel: tuple[torch.dtype, int],
    heads: tuple[int, int],
    scale: float | None,
    orders: tuple[str, ...],
    seed: int,
    backend: str,
) -> None:
    more = max(1, min(16, ROWS // (layout.num_tokens * heads[0])))
    tensors = inputs_of(layout, *kernel, heads=more * heads[0], kv_heads=more * heads[1], seed=seed // 2)
    q, k, v, grad = (strategies.in_order(x, order) for x, order in zip(tensors, orders, strict=True))
    assert_within_bound(q, k, v, grad, layout, gradients(q, k, v, grad, layout, scale, seed), scale)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 127, 128, 129])
def test_lengths_about_the_tiles(tokens: int, backend: str) -> None:
    """Causal text and frames of so many tokens, one behind the other."""
    layout = SequenceLayout.from_segments([[Text(tokens), Frame(1, tokens), Text(1)]])
    q, k, v, grad = inputs_of(layout)
    assert_within_bound(q, k, v, grad, layout, gradients(q, k, v, grad, layout))


@pytest.mark.parametrize(("dtype", "head_dim"), KERNELS)
def test_every_kernel(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    """Groups of three heads, slices of joint projections, full and partial tiles, hidden keys."""
    layout = SequenceLayout.from_segments([VIDEO])
    layout = layout.with_hidden(torch.arange(layout.num_tokens) % 5 == 3)
    q, k, v, grad = (strategies.in_order(x, "fused") for x in inputs_of(layout, dtype, head_dim, 6, 2))
    assert_within_bound(q, k, v, grad, layout, gradients(q, k, v, grad, layout, schedule=1))


@pytest.mark.parametrize(("dtype", "magnitude"), [(BF16, 64), (FP32, 8)])
def test_large_scores(dtype: torch.dtype, magnitude: float, backend: str) -> None:
    layout = SequenceLayout.from_segments([[Frame(9, 9)]])
    q, k, v, grad = inputs_of(layout, dtype)
    q *= magnitude
    assert_within_bound(q, k, v, grad, layout, gradients(q, k, v, grad, layout))


def test_strides_beyond_32_bits(backend: str) -> None:
    layout, stride = SequenceLayout.from_segments([[Text(2)]]), 2**31 + 64
    near = inputs_of(layout, heads=1)
    expected = gradients(*near, layout)
    for i in range(4):
        x = torch.empty(stride + 64, dtype=BF16).as_strided((2, 1, 64), (stride, 64, 1)).copy_(near[i])
        assert_equal(gradients(*near[:i], x, *near[i + 1 :], layout), expected)


@pytest.mark.parametrize(("dtype", "head_dim"), KERNELS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_of_one_visible_key_the_gradient_is_exact(
    scale: float | None, dtype: torch.dtype, head_dim: int, backend: str
) -> None:
    """p is 1 and out is v: grad_v is grad_out, grad_q and grad_k are 0, not what rounding leaves of a difference."""
    layout = SequenceLayout.from_segments([[Text(1)]] * 70)
    q, k, v, grad = inputs_of(layout, dtype, head_dim, heads=3, kv_heads=3)
    grad_q, grad_k, grad_v = gradients(q, k, v, grad, layout, scale)
    assert bool((grad_q == 0).all())
    assert bool((grad_k == 0).all())
    tolerances.assert_bitwise_equal(grad_v, grad)


# ---- what is not seen


@given(
    layout=st.one_of(strategies.interval_layouts(), strategies.hidden_layouts(), strategies.tube_layouts()),
    kernel=st.sampled_from([(BF16, 64), (FP16, 128), (FP32, 32)]),
    seed=strategies.seeds(),
)
def test_keys_that_nobody_sees_may_hold_nan(
    layout: SequenceLayout, kernel: tuple[torch.dtype, int], seed: int, backend: str
) -> None:
    q, k, v, grad = inputs_of(layout, *kernel)
    dirty = gradients(q, *poison.poison_unseen_keys(k, v, layout), grad, layout, schedule=seed)
    assert_equal(dirty, gradients(q, k, v, grad, layout))
    seen = torch.cat([visible(layout, i).any(0) for i in range(layout.num_sequences)])
    assert bool((dirty[1][~seen] == 0).all())
    assert bool((dirty[2][~seen] == 0).all())


@pytest.mark.parametrize(
    ("kernel", "value"),
    [
        ((BF16, 64), float("nan")),
        ((BF16, 96), float("inf")),
        ((FP16, 128), float("nan")),
        ((FP32, 32), float("nan")),
    ],
    ids=str,
)
@pytest.mark.parametrize("poisoned", range(4))
@pytest.mark.parametrize("segment", [2, 3])
def test_nan_stays_with_the_tokens_that_see_it(
    segment: int, poisoned: int, kernel: tuple[torch.dtype, int], value: float, backend: str
) -> None:
    """One token of a frame, or of text, whose tile holds tokens that see it beside tokens that do not."""
    layout = SequenceLayout.from_segments([VIDEO])
    token = layout.segments(0)[segment][2] - 13
    mask = layout.visible(0)
    tensors = inputs_of(layout, *kernel)
    clean = gradients(*tensors, layout)
    tensors[poisoned][token] = value
    grad_q, grad_k, grad_v = gradients(*tensors, layout)
    if poisoned in (1, 2):
        tolerances.assert_bitwise_equal(grad_q[~mask[:, token]], clean[0][~mask[:, token]])
        assert bool((~grad_q[mask[:, token]].isfinite()).any((1, 2)).all())
    else:
        for actual, expected in ((grad_k, clean[1]), (grad_v, clean[2])):
            tolerances.assert_bitwise_equal(actual[~mask[token]], expected[~mask[token]])
        assert bool((~grad_k[mask[token]].isfinite()).any((1, 2)).all())


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_rows_that_see_nothing(dtype: torch.dtype, backend: str) -> None:
    layout = SequenceLayout.from_intervals([40], torch.tensor([[0, 0, 5, 0, 0]] * 20 + [[0, 0, 0, 0, 0]] * 20))
    q, k, v, grad = inputs_of(layout, dtype)
    q[20:] = float("nan")
    grad[20:] = float("nan")
    grad_q, grad_k, grad_v = gradients(q, k, v, grad, layout)
    assert bool((grad_q[20:] == 0).all())
    assert bool((grad_k[5:] == 0).all())
    assert bool((grad_v[5:] == 0).all())
    assert all(bool(x.isfinite().all()) for x in (grad_q, grad_k, grad_v))


def test_a_layout_in_which_nobody_sees_anything(backend: str) -> None:
    layout = SequenceLayout.from_intervals([70], torch.zeros(70, 5, dtype=torch.int64))
    assert all(bool((x == 0).all()) for x in gradients(*inputs_of(layout), layout))


# ---- bits


@pytest.mark.parametrize("kernel", [(BF16, 64), (BF16, 128), (FP16, 64), (FP32, 64)], ids=str)
def test_neighbours_and_schedules_change_no_bit(kernel: tuple[torch.dtype, int], backend: str) -> None:
    """The same sequence alone, again, and packed among others, with blocks and warps in other orders."""
    alone = SequenceLayout.from_segments([VIDEO])
    tensors = inputs_of(alone, *kernel)
    expected = gradients(*tensors, alone)
    assert_equal(gradients(*tensors, alone, schedule=3), expected)
    packed = SequenceLayout.from_segments([[Text(5)], VIDEO, [Frame(9, 9)]])
    others = inputs_of(packed, *kernel, seed=9)
    rows = slice(5, 5 + alone.num_tokens)
    for other, own in zip(others, tensors, strict=True):
        other[rows] = own
    assert_equal([x[rows] for x in gradients(*others, packed, schedule=4)], expected)


def test_nothing_is_written_beside_the_gradients(backend: str) -> None:
    if backends.has_gpu():
        pytest.skip("guard bands are in memory of the host")
    layout = SequenceLayout.from_segments([VIDEO])
    q, k, v, grad = inputs_of(layout)
    out, row_state = forward(q, k, v, layout, 0.125)
    guarded = [poison.GuardedTensor(x.shape, x.dtype) for x in (q, k, v)]
    workspace = poison.GuardedTensor((q.shape[0] * q.shape[1] * 4,), FP32)
    rows = layout.schedule()
    runs = (rows.tiles, rows.row_offsets, rows.row_runs, rows.col_offsets, rows.col_runs)
    arguments = (grad, q, k, v, out, row_state, layout.intervals, None, *runs, 0.125, *(x.tensor for x in guarded))
    with backends.running("cuda"):
        registry.call("block_attention_backward", *arguments, workspace.tensor)
        with pytest.raises(ValueError, match=r"workspace has \d+ bytes; it must have \d+"):
            registry.call("block_attention_backward", *arguments, workspace.tensor[1:])
    for x in (*guarded, workspace):
        x.assert_untouched()
    assert_equal([x.tensor for x in guarded], gradients(q, k, v, grad, layout))


# ---- the machine


@pytest.mark.parametrize("kernel", [(BF16, 64), (BF16, 128), (FP32, 64)], ids=str)
def test_no_barrier_and_no_wait_can_be_left_out(kernel: tuple[torch.dtype, int], backend: str) -> None:
    """But those within a warp before each of its stores: the machine runs the lanes of a warp together."""
    layout = SequenceLayout.from_segments([[Frame(11, 11), Frame(11, 11), Text(3)]])
    tensors = inputs_of(layout, *kernel)
    harmless = []
    for launch in launches_of(tensors, layout):
        harmless.append(0)
        for index, _ in launch["synchronisations"]:
            try:
                launches_of(tensors, layout, skip_instruction=index, skip_kernel=launch["kernel"])
            except emulation.KernelFault:
                continue
            harmless[-1] += 1
    assert harmless == ([0, 0, 0] if kernel[0] == FP32 else [0, 2, 1])  # tensors that a kernel stores


def launches_of(tensors: list[Tensor], layout: SequenceLayout, **options: Any) -> list[dict[str, Any]]:
    q, k, v, grad = tensors
    out, row_state = forward(q, k, v, layout, 0.125)
    rows = layout.schedule()
    runs = (rows.tiles, rows.row_offsets, rows.row_runs, rows.col_offsets, rows.col_runs)
    with emulation.ptxvm(**options) as machine:
        torch.ops.lumos._block_attention_backward(
            grad, q, k, v, out, row_state, layout.intervals, layout.hidden, *runs, 0.125
        )
        return machine.launches


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
def test_work_on_tensor_cores_and_memory(head_dim: int, backend: str) -> None:
    """Seven products where five are needed, of seen tiles alone; no conflict of banks, no local memory."""
    layout = SequenceLayout.from_segments([[Frame(8, 16)] * 3])
    _, *passes = launches_of(inputs_of(layout, BF16, head_dim, heads=1), layout)
    pairs = int(layout.visible(0).sum())

    def total(counter: str, kind: str) -> int:
        return sum(x[counter] for launch in passes for x in launch["lines"] if x["class"].startswith(kind))

    assert total("instructions", "mma") == 7 * pairs * head_dim // (16 * 8 * 16)
    assert total("instructions", "local") == 0
    assert total("wavefronts", "") == total("ideal_wavefronts", "")
    copied, sectors = total("bytes", "async"), total("sectors", "async")
    assert 32 * sectors == copied


# ---- framework


def test_opcheck(backend: str) -> None:
    layout = SequenceLayout.from_segments([[Text(3), Frame(2, 2)]])
    q, k, v, grad = inputs_of(layout)
    out, row_state = forward(q, k, v, layout, 0.125)
    rows = layout.schedule()
    runs = (rows.tiles, rows.row_offsets, rows.row_runs, rows.col_offsets, rows.col_runs)
    with backends.running("cuda") as place:
        arguments = [place(x) for x in (grad, q, k, v, out, row_state, layout.intervals)]
        torch.library.opcheck(
            torch.ops.lumos._block_attention_backward.default, (*arguments, None, *map(place, runs), 0.125)
        )


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        (BF16, 160, "head_dim is 160; CUDA has 32, 64, 96 and 128: pad the heads"),
        (FP32, 256, "head_dim is 256; CUDA has 32, 64, 96 and 128: pad the heads"),
        (FP16, 96, "head_dim is 96; CUDA has 64 and 128 in float16: use bfloat16"),
    ],
)
def test_other_head_dims_are_refused(dtype: torch.dtype, head_dim: int, message: str, backend: str) -> None:
    layout = SequenceLayout.from_segments([[Text(3)]])
    q, k, v, grad = inputs_of(layout, dtype, head_dim)
    with pytest.raises(ValueError, match=f"block_attention_backward: {message}"):
        backward(grad, q, k, v, q, torch.zeros(3, 2, 2), layout, 0.125)
