"""One call on a cache: where its tokens go, and what its queries may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .plan import CachePlan, PagedKeys
from .table import PageTable

if TYPE_CHECKING:
    from ..layout import LayoutStep

__all__ = ["CacheStep", "make_cache_step"]


@dataclass(frozen=True, eq=False)
class CacheStep:
    """One open range of tokens per sequence: what ``PagedKVCache.begin`` made of a ``LayoutStep``.

    slots: int64 [tokens of the step], physical slots ``page * page_size + offset``. page_table: int32 [sequences of the
    step, pages], -1 where no page is. key_tiles: all keys that the step may see, its own included. epochs: state of the
    sequences that it belongs to; commit, rollback, release, fork and evict make it stale.
    """

    step: LayoutStep
    slots: Tensor
    page_table: Tensor
    key_tiles: PagedKeys
    epochs: tuple[int, ...]


def make_cache_step(
    plan: CachePlan, table: PageTable, step: LayoutStep, epochs: tuple[int, ...], device: torch.device
) -> CacheStep:
    """The tensors of ``step``, whose pages are in the table."""
    sequences = np.array(step.sequences, dtype=np.int64)
    virtual = plan.virtual_slots[step.slots_in_layout.cpu()].numpy()
    slots = table.slots(np.repeat(sequences, np.array(step.end) - np.array(step.begin)), virtual)
    tiles = [
        plan.key_tiles(sequence, end, table.lengths, position)
        for position, (sequence, end) in enumerate(zip(step.sequences, step.end, strict=True))
    ]
    return CacheStep(
        step,
        torch.from_numpy(slots).to(device),
        torch.from_numpy(table.pages[sequences]).to(device),
        PagedKeys(torch.from_numpy(np.concatenate(tiles))),
        epochs,
    )
