"""merge_attention: two halves of the keys make the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lumos_engine._C as extension
from lumos_engine import SequenceLayout, ops
from lumos_engine.ops import _registry
from lumos_engine.testing import check_backend, eager, poison, strategies, tolerances
from lumos_engine.testing.backends import COMPILED, DTYPES, running

ISAS = extension.available_isas()
Sides = tuple[Tensor, Tensor, Tensor, Tensor]


@st.composite
def halves(draw: st.DrawFn, backend: str) -> Sides:
    """(out_a, lse_a, out_b, lse_b), where some rows of either side saw nothing and hold NaN."""
    shape = (draw(st.integers(1, 130)), draw(st.integers(1, 3)), draw(st.sampled_from(strategies.HEAD_DIMS)))
    dtype, seed, scale = (
        draw(st.sampled_from(DTYPES[backend])),
        draw(st.integers(0, 2**30)),
        draw(st.sampled_from([1, 40])),
    )
    return sides(shape, dtype, seed, scale, draw(st.tuples(strategies.memory_orders(), strategies.memory_orders())))


def sides(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    seed: int = 0,
    scale: int = 1,
    orders: tuple[str, str] = ("contiguous", "contiguous"),
) -> Sides:
    found: list[Tensor] = []
    for i, order in enumerate(orders):
        out = strategies.in_order(strategies.randn(shape, dtype, seed + i), order)
        lse = strategies.randn(shape[:2], torch.float32, seed + 2 + i) * scale
        empty = strategies.randn(shape[:2], torch.float32, seed + 4 + i) > 1
        lse[empty] = -torch.inf
        out[empty] = float("nan")
        found += [out, lse]
    return found[0], found[1], found[2], found[3]


def assert_exact(case: Sides, backend: str, schedule: int | None = None, note: str = "") -> None:
    exact = ops.merge_attention(*(x.double() for x in case), backend="reference")
    baseline = eager.merge_attention(*case)
    with running(backend, schedule) as place, poison.poisoned_outputs():
        actual = [x.cpu() for x in ops.merge_attention(*map(place, case))]
    for name, *results in zip(("out", "lse"), actual, exact, baseline, strict=True):
        tolerances.assert_within_bound(*results, name=f"{name}{note}")


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data(), schedule=strategies.seeds())
def test_within_the_bound_of_the_reference(data: st.DataObject, schedule: int, backend: str) -> None:
    case = data.draw(halves(backend))
    for level in ISAS if backend == "cpu" else ISAS[-1:]:
        extension.set_cpu_isa(level)
        assert_exact(case, backend, schedule, f" ({level})")


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 32), (3, 160), (70, 64), (2, 1056), (300, 32)])
def test_every_shape_of_block_on_cuda(heads: int, head_dim: int, backend: str) -> None:
    """Heads that several blocks share, and those that leave threads of a block without work."""
    for dtype in DTYPES["cuda"]:
        assert_exact(sides((5, heads, head_dim), dtype), backend, 1)


@pytest.mark.parametrize("backend", ["cuda"])
@given(data=st.data(), schedule=strategies.seeds())
def test_neighbours_order_and_memory_change_no_bit_on_cuda(data: st.DataObject, schedule: int, backend: str) -> None:
    case = data.draw(halves(backend))
    out, lse = (poison.GuardedTensor(x.shape, x.dtype) for x in case[:2])
    with running(backend, schedule) as place:
        out_a, lse_a, out_b, lse_b = map(place, case)
        into = place(out.tensor), place(lse.tensor)
        readable = (_registry.rows_contiguous("merge_attention", "out", x) for x in (out_a, out_b))
        _registry.call("merge_attention", next(readable), lse_a, next(readable), lse_b, *into)
    for guarded in (out, lse):
        guarded.assert_untouched()
    with running(backend):
        for token in range(0, len(out_a), 9):
            alone = ops.merge_attention(*(x[token : token + 1] for x in (out_a, lse_a, out_b, lse_b)))
            for actual, expected in zip(alone, into, strict=True):
                tolerances.assert_bitwise_equal(actual, expected[token : token + 1])


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("padding", "offset"), [(0, 1), (4, 0)])
def test_what_is_not_aligned_to_16_bytes_is_copied_and_counted_on_cuda(padding: int, offset: int, backend: str) -> None:
    case = sides((50, 3, 64), torch.bfloat16)
    memory = torch.zeros(50 * 3 * (64 + padding) + offset, dtype=torch.bfloat16)
    crooked = memory[offset:].view(50, 3, 64 + padding)[..., :64].copy_(case[2])
    before = _registry.copies["merge_attention.out_b"]
    with running(backend) as place:
        a, lse_a, b, lse_b = map(place, case)
        for left, right in zip(
            ops.merge_attention(a, lse_a, place(crooked), lse_b), ops.merge_attention(a, lse_a, b, lse_b), strict=True
        ):
            tolerances.assert_bitwise_equal(left, right)
        assert _registry.copies["merge_attention.out_b"] == before + 1
        with pytest.raises(ValueError, match=r"merge_attention: out_b begins at .* all must be multiples of 16"):
            out, lse = torch.empty_like(a), torch.empty_like(lse_a)
            _registry.call("merge_attention", a, lse_a, place(crooked), lse_b, out, lse)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("far", ["token", "head"])
def test_strides_beyond_32_bits(far: str, backend: str) -> None:
    """Of memory that no one touches between the two tokens, or heads."""
    stride = 2**31 + 64
    shape, strides = ((2, 1, 64), (stride, 64, 1)) if far == "token" else ((1, 2, 64), (128, stride, 1))
    with running(backend) as place:
        near, lse = (
            place(strategies.randn(shape, torch.bfloat16, 0)),
            place(strategies.randn(shape[:2], torch.float32, 1)),
        )
        x = torch.empty(stride + 64, dtype=near.dtype, device=near.device).as_strided(shape, strides).copy_(near)
        for one, other in ((x, near), (near, x)):
            for left, right in zip(
                ops.merge_attention(one, lse, other, lse), ops.merge_attention(near, lse, near, lse), strict=True
            ):
                tolerances.assert_bitwise_equal(left, right)


@pytest.mark.parametrize("backend", COMPILED)
def test_lse_that_is_large_equal_or_nan(backend: str) -> None:
    a, b = strategies.randn((6, 1, 32), torch.float32, 0), strategies.randn((6, 1, 32), torch.float32, 1)
    lse_a = torch.tensor([[1e4], [-1e4], [3.0], [float("nan")], [0.0], [2e38]])
    lse_b = torch.tensor([[-1e4], [-1e4], [3.0], [0.0], [float("nan")], [-2e38]])
    with running(backend) as place:
        out, lse = (x.cpu() for x in ops.merge_attention(*map(place, (a, lse_a, b, lse_b))))
    tolerances.assert_bitwise_equal(out[[0, 5]], a[[0, 5]])
    tolerances.assert_bitwise_equal(lse[[0, 5]], lse_a[[0, 5]])
    torch.testing.assert_close(out[1:3], (a[1:3] + b[1:3]) / 2, **tolerances.CLOSED_FORM)
    torch.testing.assert_close(lse[1:3], lse_a[1:3] + torch.tensor(2.0).log(), **tolerances.CLOSED_FORM)
    assert bool(out[3:5].isnan().all() and lse[3:5].isnan().all())


@pytest.mark.parametrize("backend", ["cuda"])
def test_properties_on_cuda(backend: str) -> None:
    with running(backend, 7) as place:

        def kernel(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            return ops.merge_attention(*map(place, arguments))

        check_backend(
            "merge_attention", kernel, promises=("run_to_run", "packing"), dtypes=DTYPES["cuda"], max_examples=10
        )


def test_history_and_span_merge_to_the_whole(isa: str) -> None:
    tokens = 150
    q, k, v = (torch.randn(tokens, 2, 64) for _ in range(3))
    whole = torch.tensor([[0, 0, 100, 100, 150]]).repeat(tokens, 1)
    history, span = whole.clone(), whole.clone()
    history[:, 3:] = 0
    span[:, :3] = 0
    parts = [ops.block_attention(q, k, v, SequenceLayout.from_intervals([tokens], rows)) for rows in (history, span)]
    out, lse = ops.merge_attention(*parts[0], *parts[1])
    expected, expected_lse = ops.block_attention(q, k, v, SequenceLayout.from_intervals([tokens], whole))
    torch.testing.assert_close(out, expected, **tolerances.REORDERED)
    torch.testing.assert_close(lse, expected_lse, **tolerances.CLOSED_FORM)


def assert_nothing_changes_no_bit(dtype: torch.dtype, backend: str) -> None:
    with running(backend) as place:
        out = place(strategies.randn((70, 2, 32), dtype, 0))
        lse = place(strategies.randn((70, 2), torch.float32, 1))
        nothing, never = torch.full_like(out, float("nan")), torch.full_like(lse, -torch.inf)
        for merged, merged_lse in (
            ops.merge_attention(out, lse, nothing, never),
            ops.merge_attention(nothing, never, out, lse),
        ):
            tolerances.assert_bitwise_equal(merged, out)
            tolerances.assert_bitwise_equal(merged_lse, lse)
        both, both_lse = ops.merge_attention(nothing, never, nothing, never)
    assert bool((both == 0).all())
    assert bool((both_lse == -torch.inf).all())


@pytest.mark.parametrize("dtype", DTYPES["cpu"])
def test_a_side_that_saw_nothing_changes_no_bit(dtype: torch.dtype, isa: str) -> None:
    assert_nothing_changes_no_bit(dtype, "cpu")


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_a_side_that_saw_nothing_changes_no_bit_on_cuda(dtype: torch.dtype, backend: str) -> None:
    assert_nothing_changes_no_bit(dtype, backend)


def test_threads_change_no_bit() -> None:
    sides = [torch.randn(300, 2, 32), torch.randn(300, 2), torch.randn(300, 2, 32), torch.randn(300, 2)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.merge_attention(*sides)
        torch.set_num_threads(3)
        many = ops.merge_attention(*sides)
    finally:
        torch.set_num_threads(before)
    for left, right in zip(one, many, strict=True):
        tolerances.assert_bitwise_equal(left, right)


@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck(backend: str) -> None:
    with running(backend) as place:
        arguments = tuple(map(place, sides((3, 2, 32), torch.float32)))
        torch.library.opcheck(torch.ops.lumos._merge_attention.default, arguments)


def test_bad_arguments_are_named() -> None:
    out, lse = torch.randn(3, 2, 32), torch.randn(3, 2)
    cases: list[tuple[type[Exception], str, tuple[Tensor, Tensor, Tensor, Tensor]]] = [
        (TypeError, "out_a has dtype float16", (out.half(), lse, out.half(), lse)),
        (TypeError, "out_b has dtype bfloat16", (out, lse, out.bfloat16(), lse)),
        (ValueError, r"out_b has shape \(2, 2, 32\)", (out, lse, out[1:], lse)),
        (ValueError, r"lse_b has shape \(3, 1\)", (out, lse, out, lse[:, :1])),
        (TypeError, "lse_a has dtype int64", (out, lse.long(), out, lse)),
        (ValueError, "head_dim is 31", (out[..., 1:], lse, out[..., 1:], lse)),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=f"merge_attention: {message}"):
            ops.merge_attention(*arguments)
