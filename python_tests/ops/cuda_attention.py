"""Calls of block_attention on CUDA that reach what the public function keeps to itself: row_state and key splits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lumos_engine import SequenceLayout, ops
from lumos_engine.testing import eager, poison, strategies, tolerances
from lumos_engine.testing.backends import running


def inputs(
    layout: SequenceLayout, dtype: torch.dtype, head_dim: int, heads: int = 2, kv_heads: int = 1
) -> list[Tensor]:
    shapes = [(layout.num_tokens, count, head_dim) for count in (heads, kv_heads, kv_heads)]
    return [strategies.randn(shape, dtype, i) for i, shape in enumerate(shapes)]


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, schedule: int | None = None, cut: bool = False
) -> list[Tensor]:
    """[out, lse, row_state]: the state is what the backward reads. cut: whether there may be key splits"""
    with running("cuda", schedule) as place, poison.poisoned_outputs():
        layout = layout.to(place(torch.zeros(1)).device)
        s = layout.schedule()
        rows = (s.tiles, s.row_offsets, s.row_runs, s.col_offsets, s.col_runs)
        lengths = s.split_tokens if cut else None
        mask = (layout.intervals, layout.hidden)
        assert ops.block_attention  # registers the operation
        results = torch.ops.lumos._block_attention(*map(place, (q, k, v)), *mask, *rows, q.shape[2] ** -0.5, lengths)
    return [x.cpu() for x in results]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, left, right in zip(("out", "lse", "row_state"), actual, expected, strict=False):
        tolerances.assert_bitwise_equal(left, right, name)


def assert_exact(layout: SequenceLayout, tensors: list[Tensor], schedule: int | None = None, cut: bool = False) -> None:
    out, lse, state = attend(*tensors, layout, schedule, cut)
    exact = ops.block_attention(*(x.double() for x in tensors), layout, backend="reference")
    runs = [eager.block_attention(*tensors, layout, order=order) for order in tolerances.ORDERS]
    outs, lses = zip(*runs, strict=True)
    tolerances.assert_within_bound(out, exact[0], outs, "out")
    tolerances.assert_within_bound(lse, exact[1], lses, "lse")
    base = 2.0 if out.element_size() == 2 else math.e
    again = state[..., 0].double() * math.log(base) + state[..., 1].double().log()
    again[state[..., 1] == 0] = -torch.inf
    tolerances.assert_within_bound(again.float(), exact[1], lses, "lse from row_state")
