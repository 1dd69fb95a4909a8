"""Hypothesis strategies of whole calls, one for each operation that ``check_backend`` knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..layout import SequenceLayout
from . import strategies
from .case import Case
from .strategies import in_order, position_triples, randn
from .strategies_cache import PAGE_SIZES, cacheable_layouts, in_pages, steps


@dataclass(frozen=True)
class Choice:
    """What the generated calls are drawn from; ``layouts`` None means all that the operation allows."""

    dtypes: Sequence[torch.dtype] = strategies.DTYPES
    head_dims: Sequence[int] = strategies.HEAD_DIMS
    memory_orders: Sequence[str] = strategies.MEMORY_ORDERS
    layouts: st.SearchStrategy[SequenceLayout] | None = None


def _seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**30)


@st.composite
def block_attention(draw: st.DrawFn, choice: Choice) -> Case:
    layout, q, k, v = draw(
        strategies.attention_inputs(choice.layouts, choice.dtypes, choice.head_dims, choice.memory_orders)
    )
    grad = randn(q.shape, q.dtype, draw(_seeds()))
    arguments = {"q": q, "k": k, "v": v, "layout": layout}
    return Case(arguments, {"scale": draw(st.sampled_from([None, 0.3]))}, {"out": grad})


@st.composite
def paged_attention(draw: st.DrawFn, choice: Choice) -> Case:
    layouts = cacheable_layouts() if choice.layouts is None else choice.layouts
    layout, q, k, v = draw(strategies.attention_inputs(layouts, choice.dtypes, choice.head_dims, choice.memory_orders))
    step = draw(steps(layout))
    paged = in_pages(k, v, layout, draw(st.sampled_from(PAGE_SIZES)), step, draw(_seeds()))
    q = in_order(q[step.slots_in_layout], draw(st.sampled_from(choice.memory_orders)))
    names = ("q", "k_pages", "v_pages", "page_table", "key_tiles", "step")
    arguments = dict(zip(names, (q, *paged.arguments()), strict=True))
    return Case(arguments, {"scale": draw(st.sampled_from([None, 0.3]))})


@st.composite
def mm_rope(draw: st.DrawFn, choice: Choice) -> Case:
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.sampled_from(choice.head_dims)))
    dtype, seed = draw(st.sampled_from(choice.dtypes)), draw(_seeds())
    x = in_order(randn(shape, dtype, seed), draw(st.sampled_from(choice.memory_orders)))
    arguments = {"x": x, "positions": draw(position_triples(shape[0]))}
    return Case(arguments, {"inverse": draw(st.booleans())}, {"rotated": randn(shape, dtype, seed + 1)})


@st.composite
def qk_norm_mm_rope(draw: st.DrawFn, choice: Choice) -> Case:
    """Grouped heads, one or several rows of weights."""
    tokens, head_dim = draw(st.integers(1, 30)), draw(st.sampled_from(choice.head_dims))
    rows = draw(st.sampled_from([1, 1, 2]))
    kv_heads = rows * draw(st.integers(1, 2))
    shapes = [(tokens, kv_heads * draw(st.integers(1, 3)), head_dim), (tokens, kv_heads, head_dim)]
    dtype, seed = draw(st.sampled_from(choice.dtypes)), draw(_seeds())
    q, k = (
        in_order(randn(shape, dtype, seed + i), draw(st.sampled_from(choice.memory_orders)))
        for i, shape in enumerate(shapes)
    )
    weights = {
        name: randn((rows, head_dim), dtype, seed + 2 + i)
        for i, name in enumerate(("q_weight", "q_bias", "k_weight", "k_bias"))
    }
    grads = {name: randn(shape, dtype, seed + 6 + i) for i, (name, shape) in enumerate(zip("qk", shapes, strict=True))}
    return Case({"q": q, "k": k, **weights, "positions": draw(position_triples(tokens))}, grads=grads)


@st.composite
def merge_attention(draw: st.DrawFn, choice: Choice) -> Case:
    """Some rows of either side saw nothing and hold NaN."""
    shape = (draw(st.integers(1, 130)), draw(st.integers(1, 3)), draw(st.sampled_from(choice.head_dims)))
    dtype, seed = draw(st.sampled_from(choice.dtypes)), draw(_seeds())
    magnitude = draw(st.sampled_from([1, 40]))
    arguments: dict[str, Tensor] = {}
    for i, side in enumerate("ab"):
        out = in_order(randn(shape, dtype, seed + i), draw(st.sampled_from(choice.memory_orders)))
        lse = randn(shape[:2], torch.float32, seed + 2 + i) * magnitude
        empty = randn(shape[:2], torch.float32, seed + 4 + i) > 1
        lse[empty] = -torch.inf
        out[empty] = torch.nan
        arguments |= {f"out_{side}": out, f"lse_{side}": lse}
    return Case(arguments)


@st.composite
def masked_linear_cross_entropy(draw: st.DrawFn, choice: Choice) -> Case:
    """Rows in any order, some twice, some never."""
    tokens, width = draw(st.integers(1, 12)), draw(st.sampled_from([1, 8, 33]))
    columns, n = draw(st.sampled_from([1, 5, 70])), draw(st.integers(1, 20))
    dtype, seed = draw(st.sampled_from(choice.dtypes)), draw(_seeds())
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (randn((size, width), dtype, seed + i) for i, size in enumerate((tokens, columns)))
    targets, rows = (torch.randint(0, limit, (n,), generator=generator) for limit in (columns, tokens))
    grads = {"mean": torch.tensor(1.0), "per_row": torch.linspace(-1, 2, n)}
    return Case({"hidden": hidden, "weight": weight, "targets": targets, "rows": rows}, grads=grads)
