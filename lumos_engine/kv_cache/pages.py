"""Which physical pages are free, and how many sequences hold each of the others."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["CacheFull", "PagePool"]


class CacheFull(RuntimeError):
    """The pool has fewer free pages than a step needs."""


class PagePool:
    """Page numbers 0..num_pages-1 with reference counts. The page freed last is handed out first, while it is warm in cache."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def references(self, page: int) -> int:
        """How many holders ``page`` has; 0 if it is free."""
        return self._references[page]

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages with one reference each, or none at all. Raises CacheFull naming how many are needed and free."""
        if count > len(self._free):
            raise CacheFull(
                f"the cache needs {count} more pages, {len(self._free)} of {self.num_pages} are free: "
                f"release sequences or make it with a larger num_pages"
            )
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add one reference to each page. Raises RuntimeError for a page that is free, before anything changes."""
        for page in self._taken(pages, "shared"):
            self._references[page] += 1

    def free(self, pages: Iterable[int]) -> None:
        """Take one reference from each page; without any it is free. Raises RuntimeError for a page that is free already,
        before anything changes."""
        for page in self._taken(pages, "freed"):
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)

    def _taken(self, pages: Iterable[int], what: str) -> list[int]:
        listed = list(pages)
        if len(set(listed)) != len(listed) or not all(
            0 <= page < self.num_pages and self._references[page] for page in listed
        ):
            raise RuntimeError(f"pages {listed} cannot be {what}: each must be taken, and named once")
        return listed
