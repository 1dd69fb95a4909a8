"""Key splits of the CUDA attention, as arguments of its kernels; ``lumos_engine.layout.key_splits`` says what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..layout.key_splits import KeySplits, cut_keys
from . import _registry as registry

_made = WeakIdKeyDictionary()  # of key tiles: {split_tokens: KeySplits or None}


def of_schedule(split_tokens: Tensor, tiles: Tensor, row_offsets: Tensor, row_runs: Tensor) -> KeySplits | None:
    """Of packed keys: the tensors of a ``Schedule``. Made once, and kept as long as ``tiles`` and ``split_tokens``."""

    def make() -> KeySplits | None:
        rows, *others = (x.numpy() for x in (tiles, split_tokens, row_offsets, row_runs))
        return cut_keys(rows, rows, *others)

    return _once(tiles, split_tokens, make)


def of_pages(split_tokens: Tensor, query_tiles: Tensor, key_tiles: Tensor) -> KeySplits | None:
    """Of keys in pages: the tensors of a ``LayoutStep`` and of ``PagedKeys``. Made once, and kept as long as they.

    What a query tile meets of its sequence only the device knows: here it may meet all of it.
    """

    def make() -> KeySplits | None:
        queries, keys, lengths = (x.numpy() for x in (query_tiles, key_tiles, split_tokens))
        first, end = (np.searchsorted(keys[:, 3], queries[:, 3], side) for side in ("left", "right"))
        some = first < end
        runs = np.stack((first, end, np.zeros_like(first)), axis=1)[some]
        return cut_keys(queries, keys, lengths, np.append(0, np.cumsum(some)), runs)

    return _once(key_tiles, split_tokens, make)


def _once(key_tiles: Tensor, split_tokens: Tensor, make: Callable[[], KeySplits | None]) -> KeySplits | None:
    made = _made.setdefault(key_tiles, WeakIdKeyDictionary())
    if split_tokens not in made:
        made[split_tokens] = make()
    found: KeySplits | None = made[split_tokens]
    return found


def arguments(splits: KeySplits | None, tables: Sequence[str], q: Tensor) -> tuple[Any, ...]:
    """Where q [tokens, heads, head_dim] lies: the tensors ``tables`` and ``merges``, the number of partial results, memory for them."""
    if splits is None:
        return (*(None for _ in tables), None, 0, None)
    num_bytes = registry.extension().key_splits_workspace(splits.num_partials, *q.shape[1:])
    workspace = q.new_empty(num_bytes // 4, dtype=torch.float32)
    tensors = (registry.on_device(getattr(splits, name), q) for name in (*tables, "merges"))
    return (*tensors, splits.num_partials, workspace)
