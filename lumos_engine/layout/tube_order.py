"""Order of the tokens inside each frame under a tube pattern: what later tokens see first, what is hidden from them last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .intervals import NAMES
from .segments import SegmentTable

if TYPE_CHECKING:
    from ..tubes import TubePattern
    from .sequence_layout import SequenceLayout


def hidden_of(layout: SequenceLayout, pattern: TubePattern | Sequence[TubePattern | None]) -> np.ndarray:
    """bool [tokens]: what `pattern`, one for all sequences or one or None for each, hides. See `SequenceLayout.with_tube`."""
    from ..tubes import TubePattern

    if isinstance(pattern, TubePattern):
        patterns: list[TubePattern | None] = [pattern] * layout.num_sequences
    else:
        if not isinstance(pattern, Sequence):
            raise TypeError(
                f"pattern must be a TubePattern or a list of TubePattern and None, got {type(pattern).__name__}"
            )
        patterns = list(pattern)
        if len(patterns) != layout.num_sequences:
            raise ValueError(
                f"pattern lists {len(patterns)} patterns, layout has {layout.num_sequences} sequences; "
                "give one, or None, for each"
            )
    hidden = np.zeros(layout.num_tokens, dtype=bool)
    for s, one in enumerate(patterns):
        if one is None:
            continue
        if not isinstance(one, TubePattern):
            raise TypeError(f"pattern[{s}] must be a TubePattern or None, got {type(one).__name__}")
        begin, end = layout._table.cu_seqlens[s : s + 2]
        hidden[begin:end] = one.history_mask(layout, s).cpu().numpy()
    return hidden


def hidden_last(table: SegmentTable, intervals: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """int64 [tokens]: old slot of each new slot when the `hidden` tokens [tokens] go to the end of their segment.

    The order within a segment is free as long as no query sees a part of it. ValueError where one does.
    """
    moved = table.per_token(np.bitwise_or.reduceat(hidden, table.slot_begin))
    inside = np.append(moved, False)  # slots at which a range must neither begin nor end
    inside[table.slot_begin] = False
    lengths = np.diff(table.cu_seqlens)
    cut = inside[np.repeat(table.cu_seqlens[:-1], lengths)[:, None] + intervals]
    if cut.any():
        slot, column = np.argwhere(cut)[0]
        sequence = int(np.searchsorted(table.cu_seqlens, slot, side="right")) - 1
        raise ValueError(
            f"pattern: {NAMES[column]} of sequence {sequence}, token {slot - table.cu_seqlens[sequence]} is "
            f"{intervals[slot, column]}, inside a frame with masked tokens; every token must see such a frame whole or not at all"
        )
    segment = np.repeat(np.arange(len(table.num_tokens)), table.num_tokens)
    return np.argsort(2 * segment + hidden, kind="stable")


def inverse(permutation: np.ndarray) -> torch.Tensor:
    """int64 [tokens]: new slot of each old one."""
    out = np.empty_like(permutation)
    out[permutation] = np.arange(len(permutation))
    return torch.from_numpy(out)
