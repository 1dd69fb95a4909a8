"""The page table: which physical page stands behind each virtual page of each sequence, and what is left in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .pages import PagePool
from .plan import CachePlan

__all__ = ["PageTable"]


class PageTable:
    """Pages of all sequences. Touches no keys or values: copies that it asks for are made by the cache.

    Attributes:
        pages: int32 [sequences, max_pages], -1 where no page is.
        lengths: int64 [segments], slots of each segment; fewer than its tokens once some were dropped, 0 once it was evicted.
        evicted: bool [segments].
    """

    def __init__(self, plan: CachePlan, pool: PagePool) -> None:
        self._plan, self.pool = plan, pool
        sequences = len(plan.pages_per_sequence)
        self.pages = np.full((sequences, int(plan.pages_per_sequence.max())), -1, dtype=np.int32)
        self.lengths = plan.end - plan.begin
        self.evicted = np.zeros(len(self.lengths), dtype=bool)

    def slots(self, sequence: int | np.ndarray, virtual: np.ndarray) -> np.ndarray:
        """Physical slots int64 of virtual ones, all of one sequence or each of its own."""
        size = self._plan.page_size
        return self.pages[sequence, virtual // size].astype(np.int64) * size + virtual % size

    def open(self, ranges: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Take pages for tokens begin..end-1 of sequences, given as (sequence, begin, end), each where its tokens so far end.

        A range that begins inside a page which other sequences hold too gets a page of its own in its place. Only text cut
        inside a page leads there: every segment starts on a fresh page.

        Returns:
            (old page, new page, slots to copy) of each page that was replaced.

        Raises:
            CacheFull: the pool has too few free pages; nothing has changed.
        """
        spans = [
            (sequence, self._plan.pages_to(sequence, begin), self._plan.pages_to(sequence, end))
            for sequence, begin, end in ranges
        ]
        shared = self._shared_partial_pages(ranges)
        pages = self.pool.allocate(sum(last - first for _, first, last in spans) + len(shared))
        copies = []
        for sequence, place, used in shared:
            old, new = int(self.pages[sequence, place]), pages.pop()
            self.pool.free([old])
            self.pages[sequence, place] = new
            copies.append((old, new, used))
        for sequence, first, last in spans:
            self.pages[sequence, first:last], pages = pages[: last - first], pages[last - first :]
        return copies

    def _shared_partial_pages(self, ranges: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """(sequence, virtual page, slots in use) of the pages that must be copied; of the sequences that hold one, the last
        may write in place."""
        found = []
        others: Counter[int] = Counter()  # references that copies found so far take away
        for sequence, begin, _ in ranges:
            used = self._plan.slots_in_last_page(sequence, begin)
            if not used:
                continue
            place = self._plan.pages_to(sequence, begin) - 1
            page = int(self.pages[sequence, place])
            if self.pool.references(page) - others[page] > 1:
                others[page] += 1
                found.append((sequence, place, used))
        return found

    def fork(self, source: int, target: int, end: int) -> None:
        """Let ``target``, which holds nothing, hold the pages of tokens 0..end-1 of ``source``, and what was lost of them."""
        last = self._plan.pages_to(source, end)
        pages = self.pages[source, :last]
        self.pool.share(pages[pages >= 0].tolist())
        self.pages[target, :last] = pages
        first, of = self._plan.segment_offsets[target], self._plan.rows_before(source, end)
        to = first + np.arange(len(of))
        whole = self._plan.end[of] <= end  # text that is cut has lost nothing, and may be longer in the target
        self.lengths[to[whole]], self.evicted[to[whole]] = self.lengths[of[whole]], self.evicted[of[whole]]

    def free(self, sequence: int, first: int, last: int) -> None:
        """Give up virtual pages first..last-1 of ``sequence``, where there are any."""
        pages = self.pages[sequence, first:last]
        self.pool.free(pages[pages >= 0].tolist())
        pages[:] = -1

    def shorten(self, row: int, length: int) -> None:
        """Keep only the first ``length`` slots of a segment."""
        sequence, first = int(self._plan.sequence[row]), int(self._plan.first_page[row])
        self.lengths[row] = length
        self.free(sequence, first + -(-length // self._plan.page_size), first + int(self._plan.num_pages[row]))

    def evict(self, rows: np.ndarray) -> None:
        """Give up these segments whole."""
        for row in rows.tolist():
            self.shorten(row, 0)
        self.evicted[rows] = True

    def release(self, sequence: int) -> None:
        """Give up everything of ``sequence``."""
        self.free(sequence, 0, int(self._plan.pages_per_sequence[sequence]))
        rows = slice(*self._plan.segment_offsets[sequence : sequence + 2])
        self.lengths[rows] = self._plan.end[rows] - self._plan.begin[rows]
        self.evicted[rows] = False
