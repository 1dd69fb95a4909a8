"""block_attention on CUDA, forward: in emulation where there is no GPU. The promises that all backends share are in check_backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.ops._registry import copies
from lumos_engine.testing import check_backend, eager, poison, strategies, tolerances
from lumos_engine.testing.backends import running

from .cuda_attention import assert_exact, assert_same, attend, inputs

HEAD_DIMS = {torch.bfloat16: (32, 64, 96, 128), torch.float16: (64, 128), torch.float32: (32, 64, 96, 128, 160, 256)}
KERNELS = [(dtype, head_dim) for dtype, head_dims in HEAD_DIMS.items() for head_dim in head_dims]
VIDEO: list[Text | Frame] = [
    Text(7),
    Frame(8, 8, newlines=True, header=3, footer=1),
    Frame(8, 8, newlines=True),
    Text(70),
]

on_cuda = pytest.mark.parametrize("backend", ["cuda"])  # skipped where there are no kernels
every_kernel = pytest.mark.parametrize(("dtype", "head_dim"), KERNELS, ids=lambda x: str(x).removeprefix("torch."))
both_sides = pytest.mark.parametrize(
    ("heads", "kv_heads"), [(1, 1), (4, 2)]
)  # two query tiles, or two heads, in a block


# ---- the right numbers


@on_cuda
@every_kernel
def test_every_kernel_is_exact(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    for schedule, (heads, kv_heads) in enumerate([(2, 2), (4, 2)]):
        assert_exact(
            SequenceLayout.from_segments([VIDEO]), inputs(layout_of(VIDEO), dtype, head_dim, heads, kv_heads), schedule
        )


def layout_of(*sequences: list[Text | Frame]) -> SequenceLayout:
    return SequenceLayout.from_segments(list(sequences))


@on_cuda
@both_sides
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129])
def test_lengths_around_tiles(length: int, heads: int, kv_heads: int, backend: str) -> None:
    for layout in (layout_of([Text(length)]), layout_of([Text(3), Frame(1, length), Frame(1, length)])):
        assert_exact(layout, inputs(layout, torch.bfloat16, 64, heads, kv_heads), length)


@on_cuda
@both_sides
def test_more_key_tiles_than_a_block_plans_ahead(heads: int, kv_heads: int, backend: str) -> None:
    layout = layout_of([Text(5), Frame(20, 64), Frame(1, 9)])
    assert_exact(layout, inputs(layout, torch.bfloat16, 64, heads, kv_heads), 3)


@on_cuda
@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.float16,), (torch.float32,)], ids=str)
def test_properties(dtypes: tuple[torch.dtype, ...], backend: str) -> None:
    with running(backend, 5) as place:

        def kernel(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, **options: float) -> tuple[Tensor, Tensor]:
            q, k, v = map(place, (q, k, v))
            return ops.block_attention(q, k, v, layout.to(q.device), **options)

        check_backend(
            "block_attention",
            kernel,
            promises=("run_to_run", "packing"),
            dtypes=dtypes,
            head_dims=[d for d in HEAD_DIMS[dtypes[0]] if d <= 128],
            max_examples=4,
        )


@pytest.mark.slow
@on_cuda
@given(data=st.data(), schedule=strategies.seeds(), scale=st.sampled_from([None, 0.3, -1.0, 0.0]))
def test_any_layout_within_the_bound(data: st.DataObject, schedule: int, scale: float | None, backend: str) -> None:
    dtype = data.draw(st.sampled_from(list(HEAD_DIMS)))
    case = strategies.attention_inputs(strategies.layouts(), (dtype,), HEAD_DIMS[dtype])
    layout, *tensors = data.draw(case)
    with running(backend, schedule) as place, poison.poisoned_outputs():
        device = place(tensors[0]).device
        results = ops.block_attention(*map(place, tensors), layout.to(device), scale=scale)
    exact = ops.block_attention(*(x.double() for x in tensors), layout, scale=scale, backend="reference")
    runs = [eager.block_attention(*tensors, layout, scale=scale, order=order) for order in tolerances.ORDERS]
    for name, result, reference, *baselines in zip(("out", "lse"), results, exact, *runs, strict=True):
        tolerances.assert_within_bound(result.cpu(), reference, baselines, name)


@on_cuda
@every_kernel
def test_scores_that_rise_from_tile_to_tile(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    """Each tile's weights would overflow under the maximum of the tile before: rows must take a new one, each by itself."""
    layout = layout_of([Text(5), *[Frame(8, 8)] * 4])
    q, k, v = inputs(layout, dtype, head_dim)
    q[::2] = q[::2].abs() + 1
    k = k.abs() * layout.frame_id[:, None, None].clamp(min=0).to(dtype) * 4
    assert_exact(layout, [q, k, v])
    alone = attend(*(x[:1] for x in (q, k, v)), layout_of([Text(1)]))
    assert_same(alone, [x[:1] for x in attend(q, k, v, layout)])


@on_cuda
def test_a_new_maximum_touches_its_row_alone(backend: str) -> None:
    layout = layout_of([Text(2), Frame(8, 8), Frame(8, 8)])
    q, k, v = inputs(layout, torch.bfloat16, 64)
    before = attend(q, k, v, layout)
    q[90] *= 50
    after = attend(q, k, v, layout)
    others = torch.arange(layout.num_tokens) != 90
    assert_same([x[others] for x in after], [x[others] for x in before])
    assert not torch.equal(after[1][90], before[1][90])


@on_cuda
@pytest.mark.parametrize("magnitude", [1e-30, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_and_tiny_scores(magnitude: float, dtype: torch.dtype, backend: str) -> None:
    layout = layout_of([Text(150)])
    q, k, v = inputs(layout, dtype, 64)
    assert_exact(layout, [q * magnitude, k, v])


# ---- the mask


def hidden_layout(seed: int = 0) -> SequenceLayout:
    layout = layout_of(VIDEO, VIDEO[:2])
    return layout.with_hidden(torch.rand(layout.num_tokens, generator=torch.Generator().manual_seed(seed)) < 0.7)


@on_cuda
@both_sides
def test_hidden_keys(heads: int, kv_heads: int, backend: str) -> None:
    layout = hidden_layout()
    assert_exact(layout, inputs(layout, torch.bfloat16, 64, heads, kv_heads), 2)


@on_cuda
@every_kernel
def test_unseen_keys_may_hold_nan(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    layout = SequenceLayout.from_intervals([150], torch.tensor([[0, 0, 9, 20, 90]] * 80 + [[3, 30, 70, 0, 0]] * 70))
    layout = layout.with_hidden(torch.arange(150) % 3 == 1)
    q, k, v = inputs(layout, dtype, head_dim)
    assert_same(attend(q, *poison.poison_unseen_keys(k, v, layout), layout), attend(q, k, v, layout))


@on_cuda
@every_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_with_the_tokens_that_see_it(
    value: float, dtype: torch.dtype, head_dim: int, backend: str
) -> None:
    layout = layout_of(VIDEO)
    q, k, v = inputs(layout, dtype, head_dim)
    clean = attend(q, k, v, layout)
    token, channel = layout.num_tokens - 13, 5
    sees = layout.visible(0)[:, token]
    v[token, :, channel] = value
    dirty = attend(q, k, v, layout)
    assert_same([x[~sees] for x in dirty], [x[~sees] for x in clean])
    seen = dirty[0][sees]
    tolerances.assert_bitwise_equal(seen[..., :channel], clean[0][sees][..., :channel])
    torch.testing.assert_close(
        seen[..., channel], torch.full_like(seen[..., channel], value), rtol=0, atol=0, equal_nan=True
    )
    v[token] = 1.0
    k[token] = float("nan")
    dirty = attend(q, k, v, layout)
    assert_same([x[~sees] for x in dirty], [x[~sees] for x in clean])
    assert dirty[0][sees].isnan().all()


@on_cuda
@every_kernel
def test_rows_that_see_nothing(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    layout = SequenceLayout.from_intervals([70], torch.tensor([[0, 0, 5, 0, 0]] * 40 + [[0, 0, 0, 0, 0]] * 30))
    q, k, v = inputs(layout, dtype, head_dim)
    q[40:] = float("nan")
    out, lse, state = attend(q, k, v, layout)
    assert bool((out[40:] == 0).all())
    assert bool((lse[40:] == -torch.inf).all())
    assert bool((state[40:, :, 1] == 0).all())
    assert all(bool(x[:40].isfinite().all()) for x in (out, lse, state))


# ---- bits


@on_cuda
@both_sides
@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.bfloat16, 64), (torch.float16, 128), (torch.float32, 32)])
def test_packed_equals_alone(dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, backend: str) -> None:
    sequences = [[Text(33)], VIDEO, [Text(3), Frame(8, 9)], VIDEO[:2]]
    layout = layout_of(*sequences)
    tensors = inputs(layout, dtype, head_dim, heads, kv_heads)
    packed = attend(*tensors, layout, 1)
    for i, sequence in enumerate(sequences):
        own = slice(int(layout.cu_seqlens[i]), int(layout.cu_seqlens[i + 1]))
        assert_same([x[own] for x in packed], attend(*(x[own] for x in tensors), layout_of(sequence)))


@on_cuda
def test_heads_in_one_block_or_in_two_have_equal_bits(backend: str) -> None:
    layout = hidden_layout()
    q, k, v = inputs(layout, torch.bfloat16, 64, 4, 1)
    together = attend(q, k, v, layout)
    for head in range(4):
        assert_same([x[:, head : head + 1] for x in together], attend(q[:, head : head + 1], k, v, layout))


@on_cuda
def test_run_to_run_under_any_order_of_blocks_and_warps(backend: str) -> None:
    layout = hidden_layout()
    tensors = inputs(layout, torch.bfloat16, 128)
    first = attend(*tensors, layout)
    for schedule in range(3):
        assert_same(attend(*tensors, layout, schedule), first)


# ---- memory


@on_cuda
@every_kernel
def test_strides_and_offsets_change_no_bit(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    layout = hidden_layout()
    tensors = inputs(layout, dtype, head_dim, 3, 3)
    expected = attend(*tensors, layout)
    before = sum(copies.values())
    unit = 16 // dtype.itemsize
    for heads_outside in (False, True):
        strided = []
        for i, x in enumerate(tensors):
            tokens, heads, _ = x.shape
            room = torch.full((heads * tokens + 1, head_dim + (i + 1) * unit), float("nan"), dtype=dtype)
            rows = room.flatten()[unit : unit + heads * tokens * room.shape[1]].view(heads * tokens, -1)[:, :head_dim]
            view = (
                rows.unflatten(0, (heads, tokens)).transpose(0, 1)
                if heads_outside
                else rows.unflatten(0, (tokens, heads))
            )
            strided.append(view.copy_(x))
        assert_same(attend(*strided, layout, 1), expected)
    assert sum(copies.values()) == before


@on_cuda
@pytest.mark.parametrize("far", ["token", "head"])
def test_strides_beyond_32_bits(far: str, backend: str) -> None:
    """Of memory that no one touches between the two tokens, or heads."""
    layout, stride = layout_of([Text(2)]), 2**31 + 64
    near = inputs(layout, torch.bfloat16, 64, 2, 2)
    strides = (stride, 64, 1) if far == "token" else (64, stride, 1)
    apart = [torch.empty(stride + 128, dtype=x.dtype).as_strided(x.shape, strides).copy_(x) for x in near]
    assert_same(attend(*apart, layout), attend(*near, layout))


@on_cuda
def test_what_is_not_aligned_to_16_bytes_is_copied_and_counted(backend: str) -> None:
    layout = layout_of([Text(9)])
    q, k, v = inputs(layout, torch.bfloat16, 64)
    crooked = torch.zeros(k.numel() + 1, dtype=k.dtype)[1:].view(k.shape).copy_(k)
    before = copies["block_attention.k"]
    assert_same(attend(q, crooked, v, layout), attend(q, k, v, layout))
    assert copies["block_attention.k"] == before + 1


# ---- bad input


@on_cuda
@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.bfloat16, 160), (torch.float16, 32), (torch.float16, 96)])
def test_other_head_dims_are_refused_with_a_remedy(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    layout = layout_of([Text(9)])
    with pytest.raises(ValueError, match=rf"block_attention: head_dim is {head_dim}; on CUDA .* backend='reference'"):
        attend(*inputs(layout, dtype, head_dim), layout)


@on_cuda
def test_a_layout_in_which_nobody_sees_anything(backend: str) -> None:
    layout = SequenceLayout.from_intervals([3], torch.zeros(3, 5, dtype=torch.int32))
    out, lse, _ = attend(*inputs(layout, torch.bfloat16, 64), layout)
    assert bool((out == 0).all())
    assert bool((lse == -torch.inf).all())
