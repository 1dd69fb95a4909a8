"""Attention of the tokens of one step against a paged cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _registry as registry
from . import key_splits
from .attention import check_head_dim, check_heads

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
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``block_attention`` for the tokens of ``step``, with keys and values in pages.

    Args:
        q: ``[tokens, heads, head_dim]`` of the step, float32 or bfloat16; head_dim a multiple of 32, at most 256.
        k_pages, v_pages: ``[pages, page_size, kv_heads, head_dim]``, any strides with a contiguous last dimension.
        page_table: int32 ``[sequences of the step, max_pages]``: virtual slot v of sequence s lives at slot
            ``page_table[s, v // page_size] * page_size + v % page_size``. Entries that no key tile reaches may hold anything.
        key_tiles: the tiles of the keys that the cache holds, sorted by sequence; each lies in one segment. Keys that are hidden as
            history must have been dropped from the cache.
        step: ``layout.step(...)``; the keys of its own tokens are in the cache.
        scale: factor of the scores; default ``1 / sqrt(head_dim)``.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        ``out`` like ``q`` and ``lse`` float32 ``[tokens, heads]``; not differentiable on the cpu backend. With every token kept they
        equal those of ``block_attention`` bit for bit, at any page size and placement.

    Raises:
        TypeError: wrong dtype. ValueError: shapes that do not agree, a layout with hidden keys, or a tile or page outside the table
            or the pool.
    """
    op = "paged_attention"
    chosen = registry.select_backend(op, q, backend)
    registry.check_tensor(op, "q", q, dtype=registry.FLOATS_OF[chosen], shape=("tokens", "heads", "head_dim"))
    tokens, heads, head_dim = q.shape
    check_head_dim(op, head_dim)
    shape: tuple[int | str, ...] = ("pages", "page_size", "kv_heads", head_dim)
    registry.check_tensor(op, "k_pages", k_pages, dtype=q.dtype, shape=shape, device=q.device)
    registry.check_tensor(op, "v_pages", v_pages, dtype=q.dtype, shape=tuple(k_pages.shape), device=q.device)
    check_heads(op, heads, k_pages.shape[2], v_pages.shape[2])
    table_shape = (len(step.sequences), "max_pages")
    registry.check_tensor(op, "page_table", page_table, dtype=torch.int32, shape=table_shape, device=q.device)
    registry.check_tensor(op, "key_tiles.tiles", key_tiles.tiles, dtype=torch.int32, shape=("tiles", 4))
    if step.num_tokens != tokens:
        raise ValueError(f"{op}: step has {step.num_tokens} tokens, q has {tokens}; they must be equal")
    if chosen == "reference":
        return registry.reference("paged").paged_attention(
            q, k_pages, v_pages, page_table, key_tiles, step, scale=scale
        )
    if step.layout.hidden is not None:
        raise ValueError(f"{op}: step.layout has hidden keys; drop them from the cache and use the layout without them")
    factor = head_dim**-0.5 if scale is None else float(scale)
    return torch.ops.lumos._paged_attention(
        q, k_pages, v_pages, page_table, key_tiles.tiles, step.intervals, step.tiles, factor, step.split_tokens
    )


def _paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    key_tiles: Tensor,
    intervals: Tensor,
    query_tiles: Tensor,
    scale: float,
    split_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    named = (("q", q), ("k_pages", k_pages), ("v_pages", v_pages))
    q, k_pages, v_pages = (registry.rows_contiguous("paged_attention", name, x) for name, x in named)
    out, lse = _paged_attention_fake(q)
    tables = [registry.on_device(x.contiguous(), q) for x in (page_table, key_tiles, intervals, query_tiles)]
    workspace = splits = None
    if registry.uses_cuda("paged_attention", q):
        if split_tokens is not None:
            splits = key_splits.of_pages(split_tokens, query_tiles, key_tiles)
        num_tiles = len(splits.tiles if splits else query_tiles)
        num_bytes = registry.extension().paged_attention_workspace(num_tiles, len(key_tiles))
        workspace = torch.empty(num_bytes // 4, dtype=torch.int32, device=q.device)
    cut = key_splits.arguments(splits, ("tiles", "keys"), q)
    registry.call("paged_attention", q, k_pages, v_pages, *tables, scale, out, lse, workspace, *cut)
    return out, lse


def _paged_attention_fake(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


registry.define(
    "_paged_attention(Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor key_tiles, Tensor intervals, "
    "Tensor query_tiles, float scale, Tensor? split_tokens=None) -> (Tensor, Tensor)",
    cpu=_paged_attention,
    cuda=_paged_attention,
    fake=_paged_attention_fake,
)
