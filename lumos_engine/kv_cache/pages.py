"""Which physical pages are free."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["CacheFull", "PagePool"]


class CacheFull(RuntimeError):
    """The pool has fewer free pages than a step needs."""


class PagePool:
    """A free list of page numbers 0..num_pages-1. The page freed last is handed out first, while it is warm in cache."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._taken = [False] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages, or none at all. Raises CacheFull naming how many are needed and free."""
        if count > len(self._free):
            raise CacheFull(
                f"the cache needs {count} more pages, {len(self._free)} of {self.num_pages} are free: "
                f"release sequences or make it with a larger num_pages"
            )
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._taken[page] = True
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back. Raises RuntimeError for a page that is not taken, before anything changes."""
        pages = list(pages)
        if len(set(pages)) != len(pages) or not all(0 <= page < self.num_pages and self._taken[page] for page in pages):
            raise RuntimeError(f"pages {pages} cannot be freed: each must be taken, and named once")
        for page in pages:
            self._taken[page] = False
        self._free.extend(pages)
