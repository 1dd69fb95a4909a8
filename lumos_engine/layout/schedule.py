"""Schedule: which key tiles each query tile visits, built once per layout on the host.

Tile grids restart at each segment, so a tile never crosses one. The cost is O(tokens + tiles x tiles of a sequence).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .key_splits import split_tokens
from .segments import SegmentTable

_INVISIBLE, _PARTIAL, _FULL = 0, 1, 2
_MAX_COUNT_CELLS = 1 << 22  # bounds the temporary count arrays for very long sequences


@dataclass(frozen=True)
class Schedule:
    """All tensors int32, contiguous, on the CPU.

    tiles [T, 4]: slot_begin, num_tokens, index_begin, sequence.
    row_offsets [T + 1], row_runs [R, 3]: for query tile i the runs row_runs[row_offsets[i] : row_offsets[i + 1]], each
    (first key tile, end key tile (exclusive), full), key tiles in increasing order.
    col_offsets [T + 1], col_runs [R2, 3]: the transpose: for key tile j the runs of query tiles.
    full 1: every (query, key) pair of the two tiles is visible, so no bound and no hidden bit need be read.
    full 0: some pairs are visible. Pairs of tiles without a visible pair appear in no run.
    split_tokens [T]: length of the key splits of each query tile, see ``key_splits.py``.
    """

    tile_tokens: int
    tiles: torch.Tensor
    row_offsets: torch.Tensor
    row_runs: torch.Tensor
    col_offsets: torch.Tensor
    col_runs: torch.Tensor
    split_tokens: torch.Tensor


@dataclass(frozen=True)
class _TileGrid:
    """Tiles as int64 columns [tiles], and the ragged array of tile pairs.

    Row i of the ragged array belongs to query tile i and has one cell per key tile of its sequence plus one: the
    closing cell ends difference sums and, always invisible, keeps runs of neighbouring rows apart.
    """

    slot_begin: np.ndarray
    num_tokens: np.ndarray
    index_begin: np.ndarray
    sequence: np.ndarray
    split_tokens: np.ndarray
    first_tile: np.ndarray  # of the same sequence
    row_begin: np.ndarray  # cell where the row begins; [tiles + 1]

    @classmethod
    def of(cls, table: SegmentTable, tile_tokens: int) -> _TileGrid:
        per_segment = -(-table.num_tokens // tile_tokens)
        num_tiles = int(per_segment.sum())
        first_of_segment = np.cumsum(per_segment) - per_segment
        offset = (np.arange(num_tiles) - np.repeat(first_of_segment, per_segment)) * tile_tokens
        sequence = np.repeat(table.sequence, per_segment)
        per_sequence = np.bincount(sequence, minlength=len(table.cu_seqlens) - 1)
        return cls(
            slot_begin=np.repeat(table.slot_begin, per_segment) + offset,
            num_tokens=np.minimum(np.repeat(table.num_tokens, per_segment) - offset, tile_tokens),
            index_begin=np.repeat(table.index_begin, per_segment) + offset,
            sequence=sequence,
            split_tokens=np.repeat(split_tokens(per_segment, tile_tokens), per_segment),
            first_tile=np.repeat(np.cumsum(per_sequence) - per_sequence, per_sequence),
            row_begin=np.concatenate(([0], np.cumsum(np.repeat(per_sequence + 1, per_sequence)))),
        )


def tile_rows(table: SegmentTable, tile_tokens: int) -> np.ndarray:
    """int64 [T, 4]: slot_begin, num_tokens, index_begin, sequence of the tiles, in the order of the packed tokens."""
    grid = _TileGrid.of(table, tile_tokens)
    return np.stack((grid.slot_begin, grid.num_tokens, grid.index_begin, grid.sequence), axis=1)


def build_schedule(table: SegmentTable, intervals: np.ndarray, hidden: np.ndarray | None, tile_tokens: int) -> Schedule:
    """The schedule of `intervals` int32 [tokens, 5] and `hidden` bool [tokens], exact about full, partial, invisible."""
    grid = _TileGrid.of(table, tile_tokens)
    state = _classify(table, grid, intervals, hidden)
    row_offsets, row_runs = _runs(grid, state)
    col_offsets, col_runs = _runs(grid, _transpose(grid, state))
    tiles = np.stack((grid.slot_begin, grid.num_tokens, grid.index_begin, grid.sequence), axis=1)
    arrays = (tiles, row_offsets, row_runs, col_offsets, col_runs, grid.split_tokens)
    return Schedule(tile_tokens, *(torch.from_numpy(a.astype(np.int32)) for a in arrays))


def _classify(table: SegmentTable, grid: _TileGrid, intervals: np.ndarray, hidden: np.ndarray | None) -> np.ndarray:
    """int8 [cells]: the state of every pair of tiles."""
    # Queries of one tile with equal bounds count as one of that weight: a frame's tile is a single row.
    starts = np.zeros(len(intervals), dtype=bool)
    starts[grid.slot_begin] = True
    starts[1:] |= (intervals[1:] != intervals[:-1]).any(axis=1)
    slots = starts.nonzero()[0]
    weights = np.diff(slots, append=len(intervals))
    tile_of_slot = np.repeat(np.arange(len(grid.sequence)), grid.num_tokens)
    query_tile = tile_of_slot[slots]
    base = table.cu_seqlens[grid.sequence[query_tile]]  # slot of the sequence's index 0
    bounds = intervals[slots].astype(np.int64) + base[:, None]  # in slots from here on
    sinks = np.stack((base, bounds[:, 0]), axis=1)
    history, span = bounds[:, 1:3], bounds[:, 3:5]

    touches = _touched(tile_of_slot, sinks, history, hidden)
    span_tiles = [_tile_range(tile_of_slot, span)]
    covers = _covered(grid, tile_of_slot, sinks, history, span)
    if hidden is not None:
        some_hidden = np.bitwise_or.reduceat(hidden, grid.slot_begin)
        some_usable = ~np.bitwise_and.reduceat(hidden, grid.slot_begin)
        inside = _hidden_inside_span(grid, hidden, span)
        covers_hidden = [
            np.stack((np.maximum(c[:, 0], inside[:, 0]), np.minimum(c[:, 1], inside[:, 1])), axis=1) for c in covers
        ]

    state = np.empty(grid.row_begin[-1], dtype=np.int8)
    for first, end in _row_chunks(grid):
        count = _Counter(grid, query_tile, weights, first, end)
        if hidden is None:
            visible = count.queries(touches + span_tiles) > 0
            covering = count.queries(covers)
        else:
            key_tile = count.key_tiles()
            visible = ((count.queries(touches) > 0) & some_usable[key_tile]) | (count.queries(span_tiles) > 0)
            covering = np.where(some_hidden[key_tile], count.queries(covers_hidden), count.queries(covers))
        full = covering == np.repeat(grid.num_tokens[first:end], count.row_cells)
        state[count.cells] = np.where(full, _FULL, np.where(visible, _PARTIAL, _INVISIBLE))
    return state


class _Counter:
    """Counts, per cell of the rows first..end of the ragged array, the queries whose tile range holds the key tile."""

    def __init__(self, grid: _TileGrid, query_tile: np.ndarray, weights: np.ndarray, first: int, end: int) -> None:
        self._rows = slice(*np.searchsorted(query_tile, (first, end)))
        self._weights = weights[self._rows]
        self._shift = grid.row_begin[first:end] - grid.first_tile[first:end]  # cell = shift + key tile
        self._query = query_tile[self._rows] - first
        self._last_tile = len(grid.sequence) - 1
        self.cells = slice(int(grid.row_begin[first]), int(grid.row_begin[end]))
        self.row_cells = np.diff(grid.row_begin[first : end + 1])

    def key_tiles(self) -> np.ndarray:
        """The key tile of each cell; the closing cell of a row has any."""
        tiles = np.arange(self.cells.start, self.cells.stop) - np.repeat(self._shift, self.row_cells)
        return np.minimum(tiles, self._last_tile)

    def queries(self, ranges: list[np.ndarray]) -> np.ndarray:
        """`ranges`: tile ranges [first, end) per query; a query counts once for each of them. Difference sums."""
        size = self.cells.stop - self.cells.start
        total = np.zeros(size)
        origin = self._shift[self._query] - self.cells.start
        for r in ranges:
            begin, end = r[self._rows, 0], r[self._rows, 1]
            some = (begin < end).nonzero()[0]
            total += np.bincount(origin[some] + begin[some], self._weights[some], size)
            total -= np.bincount(origin[some] + end[some], self._weights[some], size)
        return np.cumsum(total)


def _row_chunks(grid: _TileGrid) -> list[tuple[int, int]]:
    num_tiles = len(grid.sequence)
    if grid.row_begin[-1] <= _MAX_COUNT_CELLS:
        return [(0, num_tiles)]
    edges = np.searchsorted(grid.row_begin, np.arange(0, grid.row_begin[-1], _MAX_COUNT_CELLS))
    edges = np.unique(np.append(edges, num_tiles))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _tile_range(tile_of_slot: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Tiles [first, end) that the slot ranges [n, 2] touch; first == end for an empty range."""
    begin, end = ranges[:, 0], ranges[:, 1]
    empty = end <= begin
    last = len(tile_of_slot) - 1
    first = tile_of_slot[np.minimum(begin, last)]
    return np.stack((first, np.where(empty, first, tile_of_slot[np.clip(end - 1, 0, last)] + 1)), axis=1)


def _touched(
    tile_of_slot: np.ndarray, sinks: np.ndarray, history: np.ndarray, hidden: np.ndarray | None
) -> list[np.ndarray]:
    """Tile ranges in which sinks and history see a key. With hidden keys, tiles at the two ends are exact and the ones
    between must still be crossed with the tiles that hold a usable key at all."""
    if hidden is None:
        return [_tile_range(tile_of_slot, sinks), _tile_range(tile_of_slot, history)]
    n = len(hidden)
    slots = np.arange(n)
    following = np.append(np.minimum.accumulate(np.where(hidden, n, slots)[::-1])[::-1], n)  # usable slot >= i
    preceding = np.append(-1, np.maximum.accumulate(np.where(hidden, -1, slots)))  # usable slot < i
    return [
        _tile_range(tile_of_slot, np.stack((following[r[:, 0]], preceding[r[:, 1]] + 1), axis=1))
        for r in (sinks, history)
    ]


def _covered(
    grid: _TileGrid, tile_of_slot: np.ndarray, sinks: np.ndarray, history: np.ndarray, span: np.ndarray
) -> list[np.ndarray]:
    """Tile ranges [first, end), disjoint, that lie wholly within the union of each query's three ranges."""
    ranges = np.stack((sinks, history, span), axis=1)  # [n, 3, 2]
    order = np.argsort(ranges[:, :, 0], axis=1, kind="stable")
    begin, end = np.moveaxis(np.take_along_axis(ranges, order[:, :, None], axis=1), 2, 0).copy()
    # Merge to disjoint maximal ranges: an earlier range that reaches the next one hands its begin over.
    for i in (1, 2):
        joined = end[:, i - 1] >= begin[:, i]
        begin[:, i] = np.where(joined, begin[:, i - 1], begin[:, i])
        end[:, i] = np.where(joined, np.maximum(end[:, i], end[:, i - 1]), end[:, i])
        end[:, i - 1] = np.where(joined, begin[:, i - 1], end[:, i - 1])
    tile_begin = np.append(grid.slot_begin, len(tile_of_slot))
    tile_end = grid.slot_begin + grid.num_tokens
    out = []
    for i in range(3):
        first = np.searchsorted(tile_begin, begin[:, i], side="left")
        last = np.searchsorted(tile_end, end[:, i], side="right")
        out.append(np.stack((first, last), axis=1))
    return out


def _hidden_inside_span(grid: _TileGrid, hidden: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Tile ranges [first, end) such that a tile with hidden keys lies in it iff all of those are inside the span."""
    n = len(hidden)
    slots = np.arange(n)
    following = np.minimum.accumulate(np.where(hidden, slots, n)[::-1])[::-1]  # hidden slot >= i
    preceding = np.maximum.accumulate(np.where(hidden, slots, -1))  # hidden slot <= i
    first = np.searchsorted(following[grid.slot_begin], span[:, 0], side="left")
    end = np.searchsorted(preceding[grid.slot_begin + grid.num_tokens - 1], span[:, 1], side="left")
    return np.stack((first, end), axis=1)


def _transpose(grid: _TileGrid, state: np.ndarray) -> np.ndarray:
    out = np.zeros_like(state)
    first_tiles, counts = np.unique(grid.first_tile, return_counts=True)
    for first, n in zip(first_tiles.tolist(), counts.tolist(), strict=True):
        cells = slice(grid.row_begin[first], grid.row_begin[first] + n * (n + 1))
        out[cells].reshape(n, n + 1)[:, :n] = state[cells].reshape(n, n + 1)[:, :n].T
    return out


def _runs(grid: _TileGrid, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximal runs of equal visible state within each row: offsets [T + 1] and (first, end, full) [R, 3]."""
    edges = (state[1:] != state[:-1]).nonzero()[0] + 1
    begins = np.concatenate(([0], edges))
    ends = np.append(edges, len(state))
    kept = state[begins] != _INVISIBLE
    begins, ends = begins[kept], ends[kept]
    row = np.searchsorted(grid.row_begin, begins, side="right") - 1
    shift = grid.first_tile[row] - grid.row_begin[row]
    runs = np.stack((begins + shift, ends + shift, state[begins] == _FULL), axis=1)
    offsets = np.searchsorted(row, np.arange(len(grid.sequence) + 1), side="left")
    return offsets, runs
