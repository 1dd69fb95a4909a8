"""Scatter keys and values into the slots of a paged cache."""

from __future__ import annotations

from torch import Tensor


def paged_write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """See ``lumos_engine.ops.paged_write``."""
    page, offset = slots // k_pages.shape[1], slots % k_pages.shape[1]
    k_pages[page, offset] = k.detach()
    v_pages[page, offset] = v.detach()
