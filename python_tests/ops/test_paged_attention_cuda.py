"""paged_attention on CUDA: equal, bit for bit, to block_attention over the same keys. In emulation where there is no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.kv_cache import PagedKeys
from lumos_engine.testing import check_backend, poison, strategies, tolerances
from lumos_engine.testing.backends import running
from lumos_engine.testing.strategies_cache import Paged, in_pages

KERNELS = [
    *((torch.bfloat16, head_dim) for head_dim in (32, 64, 96, 128)),
    *((torch.float16, head_dim) for head_dim in (64, 128)),
    *((torch.float32, head_dim) for head_dim in (32, 128, 256)),
]
VIDEO: list[Text | Frame] = [
    Text(7),
    Frame(8, 8, newlines=True, header=3, footer=1),
    Frame(8, 8, newlines=True),
    Text(70),
]
PAGE_SIZES = (16, 48, 64, 256)

on_cuda = pytest.mark.parametrize("backend", ["cuda"])  # skipped where there are no kernels
every_kernel = pytest.mark.parametrize(("dtype", "head_dim"), KERNELS, ids=lambda x: str(x).removeprefix("torch."))


def inputs(layout: SequenceLayout, dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int) -> list[Tensor]:
    shapes = [(layout.num_tokens, count, head_dim) for count in (heads, kv_heads, kv_heads)]
    return [strategies.randn(shape, dtype, i) for i, shape in enumerate(shapes)]


def recomputed(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout) -> tuple[Tensor, Tensor]:
    with running("cuda") as place:
        q, k, v = map(place, (q, k, v))
        out, lse = ops.block_attention(q, k, v, layout.to(q.device))
    return out.cpu(), lse.cpu()


def cached(q: Tensor, paged: Paged, schedule: int | None = None) -> tuple[Tensor, Tensor]:
    with running("cuda", schedule) as place, poison.poisoned_outputs():
        q = place(q)
        step = replace(paged.step, intervals=paged.step.intervals.to(q.device))
        pages = map(place, (paged.k_pages, paged.v_pages, paged.page_table))
        out, lse = ops.paged_attention(q, *pages, paged.key_tiles, step)
    return out.cpu(), lse.cpu()


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], slots: Tensor) -> None:
    for name, left, right in zip(("out", "lse"), actual, expected, strict=True):
        tolerances.assert_bitwise_equal(left, right[slots], name)


@on_cuda
@every_kernel
def test_cached_equals_recomputed_at_any_page_size(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    """Unused slots of the pages hold NaN."""
    layout = SequenceLayout.from_segments([VIDEO, VIDEO[:3]])
    for heads, kv_heads in ((1, 1), (4, 2)):
        q, k, v = inputs(layout, dtype, head_dim, heads, kv_heads)
        expected = recomputed(q, k, v, layout)
        step = layout.step([1, 0], [layout.segments(1)[1][1], 0], [layout.segments(1)[2][2], layout.segments(0)[2][2]])
        for seed, page_size in enumerate(PAGE_SIZES):
            paged = in_pages(k, v, layout, page_size, step, seed)
            assert_same(cached(q[step.slots_in_layout], paged, seed), expected, step.slots_in_layout)


@on_cuda
@pytest.mark.parametrize(("begin", "end"), [(0, 1), (5, 70), (63, 65), (64, 128), (100, 129), (0, 129)])
def test_text_that_is_cut_anywhere(begin: int, end: int, backend: str) -> None:
    layout = SequenceLayout.from_segments([[Text(129)]])
    q, k, v = inputs(layout, torch.bfloat16, 64, 2, 1)
    step = layout.step(0, begin, end)
    paged = in_pages(k, v, layout, 16, step, begin)
    assert_same(cached(q[step.slots_in_layout], paged, end), recomputed(q, k, v, layout), step.slots_in_layout)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pages_with_strides(dtype: torch.dtype, backend: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO])
    q, k, v = inputs(layout, dtype, 64, 2, 2)
    step = layout.step(0, *layout.segments(0)[2][1:])
    paged = in_pages(k, v, layout, 48, step, 1)
    layers = torch.stack((paged.k_pages, paged.v_pages), 2)  # keys and values of a slot side by side
    strided = replace(paged, k_pages=layers[:, :, 0], v_pages=layers[:, :, 1].contiguous())
    assert strided.k_pages.stride() != strided.v_pages.stride()
    for pages in (paged, strided):
        assert_same(cached(q[step.slots_in_layout], pages), recomputed(q, k, v, layout), step.slots_in_layout)


@on_cuda
@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.float32,)], ids=str)
def test_properties(dtypes: tuple[torch.dtype, ...], backend: str) -> None:
    with running(backend, 5) as place:

        def kernel(
            q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, *rest: object, **options: float
        ) -> object:
            key_tiles, step = rest
            q = place(q)
            step = replace(step, intervals=step.intervals.to(q.device))
            return ops.paged_attention(q, *map(place, (k_pages, v_pages, page_table)), key_tiles, step, **options)

        check_backend(
            "paged_attention",
            kernel,
            promises=("run_to_run", "packing", "placement"),
            dtypes=dtypes,
            head_dims=(32, 64, 96, 128),
            max_examples=4,
        )


@on_cuda
@every_kernel
def test_pages_outside_the_pool_are_never_read(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    """The device knows them too late to raise an error: their keys count as zeros."""
    layout = SequenceLayout.from_segments([VIDEO])
    q, k, v = inputs(layout, dtype, head_dim, 2, 1)
    step = layout.step(0, *layout.segments(0)[2][1:])
    paged = in_pages(k, v, layout, 16, step, 1)
    for page in (-1, 1000, 2**31 - 1):
        paged.page_table[0, 0] = page
        out, lse = cached(q[step.slots_in_layout], paged)
        zeros = torch.arange(layout.num_tokens)[:, None, None] < 7
        expected = recomputed(q, k.masked_fill(zeros, 0.0), v.masked_fill(zeros, 0.0), layout)
        assert_same((out, lse), expected, step.slots_in_layout)


@on_cuda
def test_a_step_without_keys(backend: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO, VIDEO])
    q, k, v = inputs(layout, torch.bfloat16, 64, 2, 1)
    step = layout.step([0, 1], 0, 7)
    paged = in_pages(k, v, layout, 16, step, 1)
    tiles = paged.key_tiles.tiles
    out, lse = cached(q[step.slots_in_layout], replace(paged, key_tiles=PagedKeys(tiles[tiles[:, 3] == 1])))
    assert bool((out[:7] == 0).all())
    assert bool((lse[:7] == -torch.inf).all())
    expected = recomputed(q, k, v, layout)
    assert_same((out[7:], lse[7:]), expected, step.slots_in_layout[7:])
