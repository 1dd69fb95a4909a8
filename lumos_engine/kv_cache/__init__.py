"""Paged storage of keys and values for frame-by-frame generation."""

from .cache import PagedKVCache
from .pages import CacheFull, PagePool
from .plan import CachePlan, PagedKeys
from .step import CacheStep

__all__ = ["CacheFull", "CachePlan", "CacheStep", "PagePool", "PagedKVCache", "PagedKeys"]
