"""Attention to keys in pages: gather them, then dense attention per sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attention import attend
from .mask import visible_keys

if TYPE_CHECKING:
    from ..kv_cache import PagedKeys
    from ..layout import LayoutStep


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    key_tiles: PagedKeys,
    step: LayoutStep,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``lumos_engine.ops.paged_attention``. ``lse`` is fp64 for fp64 inputs."""
    outs, lses = [], []
    for rows, keys, values, mask in gather(k_pages, v_pages, page_table, key_tiles, step):
        out, lse = attend(q[rows], keys, values, mask, scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def gather(
    k_pages: Tensor, v_pages: Tensor, page_table: Tensor, key_tiles: PagedKeys, step: LayoutStep
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For each sequence of the step: its rows in q, its keys and values [keys, kv_heads, head_dim], who sees them."""
    page_size = k_pages.shape[1]
    layout = step.layout
    for place, sequence in enumerate(step.sequences):
        tiles = key_tiles.tiles[key_tiles.tiles[:, 3] == place].long()
        virtual, index = (_enumerate(tiles[:, column], tiles[:, 1]).to(k_pages.device) for column in (0, 2))
        slots = page_table[place].long()[virtual // page_size] * page_size + virtual % page_size
        hidden = None if layout.hidden is None else layout.hidden[int(layout.cu_seqlens[sequence]) + index]
        rows = slice(int(step.cu_seqlens[place]), int(step.cu_seqlens[place + 1]))
        mask = visible_keys(step.intervals[rows], index, hidden).to(k_pages.device)
        yield rows, k_pages.flatten(0, 1)[slots], v_pages.flatten(0, 1)[slots], mask


def _enumerate(first: Tensor, count: Tensor) -> Tensor:
    """first[0], first[0] + 1, ... (count[0] of them), first[1], ..."""
    return torch.arange(int(count.sum())) + (first - count.cumsum(0) + count).repeat_interleave(count)
