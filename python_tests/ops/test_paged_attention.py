"""paged_attention: equal, bit for bit, to block_attention over the same keys; bounds checked before memory is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.kv_cache import PagedKeys
from lumos_engine.testing import strategies, tolerances
from lumos_engine.testing.strategies_cache import Paged, cacheable_layouts, in_pages, steps

VIDEO: list[Text | Frame] = [
    Text(7),
    Frame(8, 8, newlines=True, header=3, footer=1),
    Frame(8, 8, newlines=True),
    Text(70),
]


LAYOUTS = cacheable_layouts()


@given(case=strategies.attention_inputs(layouts=LAYOUTS), data=st.data(), page_size=st.sampled_from([16, 64]))
def test_reference_agrees_with_block_attention(
    case: tuple[SequenceLayout, Tensor, Tensor, Tensor], data: st.DataObject, page_size: int
) -> None:
    layout, q, k, v = (x.double() if isinstance(x, Tensor) else x for x in case)
    step = data.draw(steps(layout))
    paged = in_pages(k, v, layout, page_size, step, 0)
    out, lse = ops.paged_attention(q[step.slots_in_layout], *paged.arguments(), backend="reference")
    expected, expected_lse = ops.block_attention(q, k, v, layout, backend="reference")
    torch.testing.assert_close(out, expected[step.slots_in_layout], rtol=0, atol=tolerances.FP64)
    torch.testing.assert_close(lse, expected_lse[step.slots_in_layout], rtol=0, atol=tolerances.FP64)


def video_step(page_size: int = 16) -> tuple[Tensor, Paged]:
    layout = SequenceLayout.from_segments([VIDEO, VIDEO[:2]])
    q, k, v = (torch.randn(layout.num_tokens, heads, 32) for heads in (4, 2, 2))
    begin, end = zip(layout.segments(0)[2][1:], layout.segments(1)[1][1:], strict=True)
    step = layout.step([0, 1], list(begin), list(end))
    return q[step.slots_in_layout], in_pages(k, v, layout, page_size, step, 1)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_no_bit(threads: int, isa: str) -> None:
    q, paged = video_step()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.paged_attention(q, *paged.arguments())
        torch.set_num_threads(threads)
        many = ops.paged_attention(q, *paged.arguments())
    finally:
        torch.set_num_threads(before)
    for left, right in zip(one, many, strict=True):
        tolerances.assert_bitwise_equal(left, right)


@pytest.mark.parametrize("column", range(5))
def test_neighbours_that_see_different_keys(column: int, isa: str) -> None:
    intervals = torch.tensor([0, 100, 110, 200, 210]).repeat(300, 1)
    intervals[161::3, column] = (60, 1, 149, 150, 290)[column]  # a tile of keys that the queries before do not see
    layout = SequenceLayout.from_intervals([300], intervals)
    q, k, v = (torch.randn(300, heads, 32) for heads in (4, 2, 2))
    step = layout.step(0, 128, 300)
    paged = in_pages(k, v, layout, 16, step, 0)
    expected = ops.block_attention(q, k, v, layout)
    for left, right in zip(ops.paged_attention(q[128:], *paged.arguments()), expected, strict=True):
        tolerances.assert_bitwise_equal(left, right[128:])


def test_pages_with_strides(isa: str) -> None:
    q, paged = video_step()
    expected = ops.paged_attention(q, *paged.arguments())
    layers = torch.stack((paged.k_pages, paged.v_pages), 2)  # keys and values of a slot side by side
    strided = replace(paged, k_pages=layers[:, :, 0], v_pages=layers[:, :, 1])
    assert not strided.k_pages.is_contiguous()
    for left, right in zip(ops.paged_attention(q, *strided.arguments()), expected, strict=True):
        tolerances.assert_bitwise_equal(left, right)


def test_compiles_and_passes_opcheck() -> None:
    q, paged = video_step()
    arguments = (*paged.arguments()[:3], paged.key_tiles.tiles, paged.step.intervals, paged.step.tiles, 0.2)
    torch.library.opcheck(torch.ops.lumos._paged_attention.default, (q, *arguments))


def test_bad_arguments_are_named() -> None:
    q, paged = video_step()
    cases: list[tuple[type[Exception], str, Tensor, Paged]] = [
        (TypeError, "q has dtype float64", q.double(), paged),
        (TypeError, "k_pages has dtype bfloat16", q, replace(paged, k_pages=paged.k_pages.bfloat16())),
        (TypeError, "page_table has dtype int64", q, replace(paged, page_table=paged.page_table.long())),
        (ValueError, "v_pages has shape", q, replace(paged, v_pages=paged.v_pages[:-1])),
        (ValueError, r"page_table has shape \(1, ", q, replace(paged, page_table=paged.page_table[:1])),
        (ValueError, "head_dim is 16", q[..., :16], paged),
        (ValueError, "q has 3 heads, k has 2", q[:, :3], paged),
        (ValueError, "step has 148 tokens, q has 147", q[1:], paged),
    ]
    for error, message, queries, wrong in cases:
        with pytest.raises(error, match=f"paged_attention: {message}"):
            ops.paged_attention(queries, *wrong.arguments())


def test_hidden_keys_are_refused() -> None:
    layout = SequenceLayout.from_segments([VIDEO]).with_hidden(torch.arange(225) == 9)
    step = layout.step(0, 0, 7)
    k = torch.randn(layout.num_tokens, 2, 32)
    paged = in_pages(k, k, layout, 16, step, 0)
    with pytest.raises(ValueError, match=r"step.layout has hidden keys; drop them"):
        ops.paged_attention(torch.randn(7, 2, 32), *paged.arguments())


def change(tensor: Tensor, place: Sequence[int], value: int) -> Tensor:
    changed = tensor.clone()
    changed[tuple(place)] = value
    return changed


def test_slots_and_pages_are_checked_before_memory_is_read() -> None:
    q, paged = video_step()
    tiles, table = paged.key_tiles.tiles, paged.page_table
    wrong = [
        (
            "page_table: page 0 of sequence 0 is 1000; the pool has",
            replace(paged, page_table=change(table, (0, 0), 1000)),
        ),
        ("page_table: page 0 of sequence 1 is -1", replace(paged, page_table=change(table, (1, 0), -1))),
        ("slots -1 to 6", replace(paged, key_tiles=PagedKeys(change(tiles, (0, 0), -1)))),
        ("leaves the", replace(paged, key_tiles=PagedKeys(change(tiles, (-1, 0), 10**6)))),
        ("more than 64 tokens", replace(paged, key_tiles=PagedKeys(change(tiles, (0, 1), 65)))),
        ("of sequence 7; sequences must be sorted", replace(paged, key_tiles=PagedKeys(change(tiles, (0, 3), 7)))),
        ("sequences must be sorted", replace(paged, key_tiles=PagedKeys(change(tiles, (0, 3), 1)))),
    ]
    for message, arguments in wrong:
        with pytest.raises(ValueError, match=message):
            ops.paged_attention(q, *arguments.arguments())
