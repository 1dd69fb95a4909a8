"""Where each token of a layout lives in a cache: segments on fresh pages, key tiles that restart at each segment.

A sequence numbers its pages 0, 1, ... in the order of its segments; these *virtual* pages, and the virtual slots in them,
are fixed by the layout. Which physical page stands behind a virtual one is the cache's page table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..layout import Frame

if TYPE_CHECKING:
    from ..layout import SequenceLayout

__all__ = ["KEY_TILE_TOKENS", "CachePlan", "PagedKeys"]

KEY_TILE_TOKENS = (
    64  # the grid of SequenceLayout.schedule, whatever the page size: cached equals recomputed bit for bit
)


@dataclass(frozen=True)
class PagedKeys:
    """Key tiles of one step: int32 [tiles, 4] on the CPU, by sequence and then by index.

    Columns: first virtual slot, tokens, index (in its sequence) of the first token, position of the sequence in the step.
    """

    tiles: Tensor


class CachePlan:
    """Virtual addresses of all tokens of ``layout`` for one page size. Holds no state.

    Attributes (numpy, one row a segment in packed order unless said otherwise):
        sequence, begin, end: which sequence, and the index range in it.
        first_page, num_pages: virtual pages.
        is_frame: bool.
        segment_offsets: int [sequences + 1], rows of each sequence.
        pages_per_sequence: int [sequences].
        virtual_slots: int64 tensor [tokens] on the CPU, by packed slot of the layout.
    """

    def __init__(self, layout: SequenceLayout, page_size: int) -> None:
        self.page_size = page_size
        rows = [
            (sequence, begin, end, isinstance(segment, Frame))
            for sequence in range(layout.num_sequences)
            for segment, begin, end in layout.segments(sequence)
        ]
        self.sequence, self.begin, self.end, is_frame = np.array(rows, dtype=np.int64).T
        self.is_frame = is_frame.astype(bool)
        self.num_pages = -(-(self.end - self.begin) // page_size)
        self.segment_offsets = np.searchsorted(self.sequence, np.arange(layout.num_sequences + 1))
        total = np.append(0, np.cumsum(self.num_pages))
        self.first_page = total[:-1] - total[self.segment_offsets[self.sequence]]
        self.pages_per_sequence = np.diff(total[self.segment_offsets])
        # Token i of a segment has virtual slot first_page * page_size + (index - begin); index counts within the sequence.
        size = self.end - self.begin
        shift = self.first_page * page_size - (np.cumsum(size) - size)
        self.virtual_slots = torch.from_numpy(np.arange(size.sum()) + np.repeat(shift, size))

    def segment_at(self, sequence: int, index: int) -> int:
        """Row of the segment that holds token ``index`` of ``sequence``."""
        first, last = self.segment_offsets[sequence], self.segment_offsets[sequence + 1]
        return int(first + np.searchsorted(self.end[first:last], index, side="right"))

    def cuts_frame(self, sequence: int, index: int) -> bool:
        """Whether the boundary before token ``index`` lies inside a frame."""
        if index in (0, self.length(sequence)):
            return False
        row = self.segment_at(sequence, index)
        return bool(self.is_frame[row] and self.begin[row] < index)

    def length(self, sequence: int) -> int:
        return int(self.end[self.segment_offsets[sequence + 1] - 1])

    def pages_to(self, sequence: int, index: int) -> int:
        """How many virtual pages tokens 0..index-1 of ``sequence`` reach into."""
        if index == 0:
            return 0
        row = self.segment_at(sequence, index - 1)
        return int(self.first_page[row] + -(-(index - self.begin[row]) // self.page_size))

    def slots_in_last_page(self, sequence: int, index: int) -> int:
        """How many slots tokens 0..index-1 of ``sequence`` use in a page that token ``index`` lies in too; 0 if none."""
        if index in (0, self.length(sequence)):
            return 0
        return int((index - self.begin[self.segment_at(sequence, index)]) % self.page_size)

    def rows_before(self, sequence: int, index: int) -> np.ndarray:
        """Rows of the segments of ``sequence`` that begin before token ``index``."""
        rows = np.arange(self.segment_offsets[sequence], self.segment_offsets[sequence + 1])
        return rows[self.begin[rows] < index]

    def key_tiles(self, sequence: int, end: int, lengths: np.ndarray, position: int) -> np.ndarray:
        """Tiles int32 [tiles, 4] of the tokens before index ``end``; see :class:`PagedKeys`.

        ``lengths`` int [segments]: how many slots of each segment are in use, less than its tokens where some were
        dropped, 0 where it was evicted. Tokens that were kept count from the index of the segment's first one: any index
        inside a segment that lies whole in a query's history serves.
        """
        rows = self.rows_before(sequence, end)
        used = np.minimum(lengths[rows], end - self.begin[rows])
        per_segment = -(-used // KEY_TILE_TOKENS)
        first = np.cumsum(per_segment) - per_segment
        offset = (np.arange(per_segment.sum()) - np.repeat(first, per_segment)) * KEY_TILE_TOKENS
        row = np.repeat(rows, per_segment)
        return np.stack(
            (
                self.first_page[row] * self.page_size + offset,
                np.minimum(np.repeat(used, per_segment) - offset, KEY_TILE_TOKENS),
                self.begin[row] + offset,
                np.full(len(row), position),
            ),
            axis=1,
        ).astype(np.int32)
