"""The visibility rule as dense masks, O(queries x keys)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..layout import SequenceLayout


def visible_keys(intervals: Tensor, keys: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Which keys each query sees, bool [queries, keys].

    Args:
        intervals: int [queries, 5], (sink_end, history_begin, history_end, span_begin, span_end) of each query.
        keys: int [keys], indices of the keys in the common sequence.
        hidden: bool [keys], keys that are not seen as history; they are still seen inside the span.
    """
    sink_end, history_begin, history_end, span_begin, span_end = intervals[:, :, None].unbind(1)
    history = (keys < sink_end) | ((history_begin <= keys) & (keys < history_end))
    if hidden is not None:
        history = history & ~hidden
    return history | ((span_begin <= keys) & (keys < span_end))


def visible(layout: SequenceLayout, sequence: int) -> Tensor:
    """Dense mask of one sequence of ``layout``, bool [n, n] (query, key)."""
    slots = slice(int(layout.cu_seqlens[sequence]), int(layout.cu_seqlens[sequence + 1]))
    keys = torch.arange(slots.stop - slots.start, dtype=torch.int32, device=layout.intervals.device)
    hidden = None if layout.hidden is None else layout.hidden[slots]
    return visible_keys(layout.intervals[slots], keys, hidden)
