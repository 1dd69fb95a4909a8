"""Positions (t, h, w) of MM-RoPE (arXiv 2507.08801, section 3.2), one rule for text and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .segments import SegmentTable, checked_int


def checked_strides(strides: Sequence[int]) -> tuple[int, int, int]:
    """`strides` as three ints of at least 1: tokenizer compression along time, height and width."""
    try:
        values = tuple(strides)
    except TypeError:
        raise TypeError(f"strides must be three ints (time, height, width), got {type(strides).__name__}") from None
    if len(values) != 3:
        raise ValueError(f"strides must be three ints (time, height, width), got {len(values)} values")
    t, h, w = (checked_int(f"strides[{i}]", value, 1) for i, value in enumerate(values))
    return t, h, w


@dataclass(frozen=True)
class TokenGrid:
    """Where each token lies: int64 columns [tokens]. row and column are defined on content tokens only."""

    index: np.ndarray
    row: np.ndarray
    column: np.ndarray
    content: np.ndarray
    newline: np.ndarray

    @classmethod
    def of(cls, table: SegmentTable) -> TokenGrid:
        slots = np.arange(table.total_tokens, dtype=np.int64)
        index = slots - np.repeat(table.cu_seqlens[:-1], np.diff(table.cu_seqlens))
        offset = slots - table.per_token(table.slot_begin + table.header)
        content = (offset >= 0) & (offset < table.per_token(table.content_tokens))
        row, column = np.divmod(offset, table.per_token(table.row_tokens))
        newline = content & (column == table.per_token(table.newline_column))
        return cls(index, row, column, content, newline)


def token_positions(
    table: SegmentTable,
    grid: TokenGrid,
    strides: tuple[int, int, int],
    index_begin: np.ndarray | None = None,
    time: np.ndarray | None = None,
) -> np.ndarray:
    """int32 [tokens, 3]. Content token of row r, column c of the k-th frame of its sequence (newline: c = width):
    P0 + (strides[0] k, strides[1] r, strides[2] c), where P0 is the index of the first content token of the first frame
    of the sequence. Every other token has t = h = w = its index.

    index_begin, time [segments]: index and frame number to use in place of the segment's own (copies of frames).
    Raises ValueError where a position passes int32.
    """
    shift = 0 if index_begin is None else table.per_token(index_begin - table.index_begin)
    flat = grid.index + shift
    if not table.is_frame.any():
        return np.repeat(flat.astype(np.int32)[:, None], 3, axis=1)
    time = table.ordinal if time is None else time
    first = (table.ordinal == 0).nonzero()[0]
    origin = np.zeros(len(table.cu_seqlens) - 1, dtype=np.int64)
    origin[table.sequence[first]] = table.index_begin[first] + table.header[first]
    origin = origin[table.sequence]
    positions = np.empty((len(flat), 3), dtype=np.int64)
    positions[:, 0] = np.where(grid.content, table.per_token(origin + strides[0] * time), flat)
    origin = table.per_token(origin)
    positions[:, 1] = np.where(grid.content, origin + strides[1] * grid.row, flat)
    positions[:, 2] = np.where(grid.content, origin + strides[2] * grid.column, flat)
    if positions.max() > 2**31 - 1:
        raise ValueError(f"strides {strides} put a token at position {positions.max()}, past int32")
    return positions.astype(np.int32)
