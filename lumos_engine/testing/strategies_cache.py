"""Hypothesis strategies of paged caches: steps of a layout, page sizes, pages in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..kv_cache import PagedKeys
from ..kv_cache.plan import CachePlan
from ..layout import LayoutStep, SequenceLayout
from . import strategies

PAGE_SIZES = (16, 48, 64, 256)


@dataclass(frozen=True)
class Paged:
    """The arguments of ``ops.paged_attention`` behind q."""

    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    key_tiles: PagedKeys
    step: LayoutStep

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, PagedKeys, LayoutStep]:
        return self.k_pages, self.v_pages, self.page_table, self.key_tiles, self.step


def in_pages(k: Tensor, v: Tensor, layout: SequenceLayout, page_size: int, step: LayoutStep, seed: int) -> Paged:
    """The keys of the step's sequences in shuffled pages, NaN in every slot that holds no key before the step's end.

    k, v: ``[tokens, kv_heads, head_dim]`` of the whole layout. page_size: slots of a page.
    """
    plan = CachePlan(layout, page_size)
    num_pages = int(plan.pages_per_sequence.sum()) + 3
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    pages = [torch.full((num_pages, page_size, *x.shape[1:]), float("nan"), dtype=x.dtype) for x in (k, v)]
    table = torch.full((len(step.sequences), int(plan.pages_per_sequence.max())), -1, dtype=torch.int32)
    tiles, used = [], 0
    for place, (sequence, end) in enumerate(zip(step.sequences, step.end, strict=True)):
        count = int(plan.pages_per_sequence[sequence])
        table[place, :count] = order[used : used + count]
        used += count
        first = int(layout.cu_seqlens[sequence])
        virtual = plan.virtual_slots[first : first + end]
        slots = table[place].long()[virtual // page_size] * page_size + virtual % page_size
        for x, target in zip((k, v), pages, strict=True):
            target.flatten(0, 1)[slots] = x[first : first + end]
        tiles.append(torch.from_numpy(plan.key_tiles(sequence, end, plan.end - plan.begin, place)))
    return Paged(pages[0], pages[1], table, PagedKeys(torch.cat(tiles)), step)


@st.composite
def steps(draw: st.DrawFn, layout: SequenceLayout) -> LayoutStep:
    """Some sequences in any order, each at segments of its own."""
    sequences = draw(st.permutations(range(layout.num_sequences)))[: draw(st.integers(1, layout.num_sequences))]
    begins, ends = [], []
    for sequence in sequences:
        segments = layout.segments(sequence)
        first = draw(st.integers(0, len(segments) - 1))
        last = draw(st.integers(first, len(segments) - 1))
        begins.append(segments[first][1])
        ends.append(segments[last][2])
    return layout.step(list(sequences), begins, ends)


def cacheable_layouts() -> st.SearchStrategy[SequenceLayout]:
    """Layouts without hidden keys, whose queries look at nothing behind their own segment."""
    return st.one_of(
        strategies.packed_layouts(), strategies.window_layouts(), strategies.teacher_forcing_layouts(),
        strategies.one_token_layouts(),
    )  # fmt: skip
