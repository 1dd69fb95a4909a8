"""merge_attention: two halves of the keys make the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lumos_engine._C as extension
from lumos_engine import SequenceLayout, Text, ops
from lumos_engine.testing import eager, poison, strategies, tolerances

ISAS = extension.available_isas()


@st.composite
def halves(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out_a, lse_a, out_b, lse_b), where some rows of either side saw nothing and hold NaN."""
    shape = (draw(st.integers(1, 130)), draw(st.integers(1, 3)), draw(st.sampled_from(strategies.HEAD_DIMS)))
    dtype, seed, scale = (
        draw(st.sampled_from(strategies.DTYPES)),
        draw(st.integers(0, 2**30)),
        draw(st.sampled_from([1, 40])),
    )
    sides: list[Tensor] = []
    for i in range(2):
        out = strategies.in_order(strategies.randn(shape, dtype, seed + i), draw(strategies.memory_orders()))
        lse = strategies.randn(shape[:2], torch.float32, seed + 2 + i) * scale
        empty = strategies.randn(shape[:2], torch.float32, seed + 4 + i) > 1
        lse[empty] = -torch.inf
        out[empty] = float("nan")
        sides += [out, lse]
    return sides[0], sides[1], sides[2], sides[3]


@given(case=halves())
def test_within_the_bound_of_the_reference(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    exact = ops.merge_attention(*(x.double() for x in case), backend="reference")
    baseline = eager.merge_attention(*case)
    for level in ISAS:
        extension.set_cpu_isa(level)
        with poison.poisoned_outputs():
            actual = ops.merge_attention(*case)
        for name, *results in zip(("out", "lse"), actual, exact, baseline, strict=True):
            tolerances.assert_within_bound(*results, name=f"{name} ({level})")


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


def test_a_side_that_saw_nothing_changes_no_bit(isa: str) -> None:
    out, lse = ops.block_attention(
        *(torch.randn(70, 2, 32) for _ in range(3)), SequenceLayout.from_segments([[Text(70)]])
    )
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


def test_opcheck() -> None:
    sides = (torch.randn(3, 2, 32), torch.randn(3, 2), torch.randn(3, 2, 32), torch.randn(3, 2))
    torch.library.opcheck(torch.ops.lumos._merge_attention.default, sides)


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
