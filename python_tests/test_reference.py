"""The reference operations against straightforward loops: they define the rest, so they are checked on their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import PagedKVCache, SequenceLayout, Text
from lumos_engine.layout import Frame
from lumos_engine.reference.attention import block_attention
from lumos_engine.reference.mask import visible
from lumos_engine.reference.merge import merge_attention
from lumos_engine.reference.paged import paged_attention
from lumos_engine.testing import eager, poison, strategies, tolerances


def by_hand(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout) -> tuple[Tensor, Tensor]:
    """One query and head at a time, over the keys that it sees."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -torch.inf, dtype=q.dtype)
    group = q.shape[1] // k.shape[1]
    for sequence in range(layout.num_sequences):
        begin = int(layout.cu_seqlens[sequence])
        for row, seen in enumerate(visible(layout, sequence)):
            keys = begin + seen.nonzero()[:, 0]
            for head in range(q.shape[1] if len(keys) else 0):
                scores = k[keys, head // group] @ q[begin + row, head] / q.shape[2] ** 0.5
                out[begin + row, head] = scores.softmax(0) @ v[keys, head // group]
                lse[begin + row, head] = scores.logsumexp(0)
    return out, lse


def qkv(layout: SequenceLayout, heads: int = 4, kv_heads: int = 2, seed: int = 0) -> list[Tensor]:
    shapes = [(layout.num_tokens, n, 32) for n in (heads, kv_heads, kv_heads)]
    return [strategies.randn(shape, torch.float32, seed + i).double() for i, shape in enumerate(shapes)]


def small_layouts() -> st.SearchStrategy[SequenceLayout]:
    return strategies.layouts().filter(lambda layout: layout.num_tokens <= 120)


@given(small_layouts())
def test_attention_equals_loops_over_keys(layout: SequenceLayout) -> None:
    q, k, v = qkv(layout)
    for actual, expected in zip(block_attention(q, k, v, layout), by_hand(q, k, v, layout), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerances.FP64)


def test_gradients_where_some_rows_see_nothing() -> None:
    intervals = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 2], [1, 0, 0, 2, 3], [0, 1, 3, 3, 4], [5, 0, 0, 0, 0]])
    layout = SequenceLayout.from_intervals([5], intervals, hidden=torch.tensor([False, True, False, False, True]))
    leaves = [x.requires_grad_() for x in qkv(layout)]
    assert torch.autograd.gradcheck(lambda q, k, v: block_attention(q, k, v, layout)[0], leaves)
    out, lse = block_attention(*leaves, layout)
    assert not out[0].any()
    assert (lse[0] == -torch.inf).all()
    assert not lse.requires_grad
    (grad,) = torch.autograd.grad(out.sum(), leaves[:1])
    assert not grad[0].any()


@given(small_layouts())
def test_unseen_keys_may_hold_nan_and_gradients_stay_finite(layout: SequenceLayout) -> None:
    q, k, v = qkv(layout)
    q.requires_grad_()
    expected = block_attention(q, k, v, layout)
    k, v = (x.requires_grad_() for x in poison.poison_unseen_keys(k, v, layout))
    actual = block_attention(q, k, v, layout)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)
    for grad in torch.autograd.grad(actual[0].sum(), (q, k, v)):
        assert grad.isfinite().all()


def test_a_seen_nan_reaches_those_who_see_it_alone() -> None:
    layout = SequenceLayout.from_segments([[Text(3), Frame(1, 2)]])
    for which in (1, 2):
        inputs = qkv(layout)
        inputs[which][2, 1] = torch.nan  # third key, second kv head
        out, lse = block_attention(*inputs, layout)
        broken = out.isnan().any(-1)
        assert torch.equal(broken, lse.isnan())
        assert broken.nonzero().tolist() == [[row, head] for row in (2, 3, 4) for head in (2, 3)]


@given(st.lists(strategies.video_segments(3), min_size=1, max_size=2), st.sampled_from([1, 16, 64]))
def test_paged_equals_packed(segments: list[list[Text | Frame]], page_size: int) -> None:
    layout = SequenceLayout.from_segments(segments)
    q, k, v = qkv(layout)
    expected = block_attention(q, k, v, layout)
    cache = PagedKVCache(layout, 1, 2, 32, page_size=page_size, dtype=torch.float64)
    step = layout.step(list(range(layout.num_sequences)), 0, [int(n) for n in layout.cu_seqlens.diff()])
    opened = cache.begin(step)
    pages = [torch.full(cache.k_pages[0].shape, torch.nan, dtype=torch.float64) for _ in range(2)]
    for page, x in zip(pages, (k, v), strict=True):
        page.flatten(0, 1)[opened.slots] = x
    actual = paged_attention(q, *pages, opened.page_table, opened.key_tiles, step)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerances.FP64)


def test_merge_of_two_halves_is_the_whole() -> None:
    layout = SequenceLayout.from_segments([[Text(1), Frame(2, 3)]])
    q, k, v = qkv(layout)
    whole = block_attention(q, k, v, layout)
    intervals = layout.intervals.clone()
    halves = []
    for first, last in ((0, 3), (3, 7)):
        part = intervals.clone()
        part[:, 1:] = part[:, 1:].clamp(first, last)
        part[:, 0] = 0
        halves.append(block_attention(q, k, v, SequenceLayout.from_intervals([7], part)))
    assert (halves[1][1][0] == -torch.inf).all(), "the text token sees nothing of the second half"
    halves[1][0][0] = torch.nan
    for a, b in zip(merge_attention(*halves[0], *halves[1]), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerances.FP64)


def test_merge_of_nothing_is_nothing() -> None:
    nothing = torch.full((1, 1, 32), torch.nan), torch.full((1, 1), -torch.inf)
    out, lse = merge_attention(*nothing, *nothing)
    assert not out.any()
    assert (lse == -torch.inf).all()


@given(strategies.attention_inputs(small_layouts()))
def test_lower_precision_is_computed_in_fp32_and_rounded_once(
    inputs: tuple[SequenceLayout, Tensor, Tensor, Tensor],
) -> None:
    layout, q, k, v = inputs
    with poison.poisoned_outputs():
        actual = block_attention(q, k, v, layout)
    exact = block_attention(q.double(), k.double(), v.double(), layout)
    runs = [eager.block_attention(q, k, v, layout, order=order) for order in tolerances.ORDERS]
    for name, result, reference, *baselines in zip(("out", "lse"), actual, exact, *runs, strict=True):
        tolerances.assert_within_bound(result, reference, baselines, name)
    assert actual[0].dtype == q.dtype
    assert actual[1].dtype == torch.float32


@pytest.mark.parametrize("scale", [0.5, 0.0])
def test_scale(scale: float) -> None:
    layout = SequenceLayout.from_segments([[Text(4)]])
    q, k, v = qkv(layout)
    expected = block_attention(q * scale * 32**0.5, k, v, layout)
    for a, b in zip(block_attention(q, k, v, layout, scale=scale), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerances.FP64)
