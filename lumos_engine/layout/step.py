"""LayoutStep: the query side of one call on a layout whose other keys are cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .segments import Frame, checked_int

if TYPE_CHECKING:
    from .sequence_layout import SequenceLayout


@dataclass(frozen=True, eq=False)
class LayoutStep:
    """Tokens begin[i] .. end[i] (indices) of sequences[i], packed in that order; sequences may be at different frames.

    cu_seqlens int32 [len(sequences) + 1]: slot, in the step's packed tokens, where each listed sequence begins.
    positions int32 [n, 3], intervals int32 [n, 5]: as in the layout. slots_in_layout int64 [n]: packed slots of the
    tokens in the whole layout.
    tiles int32 [T, 4] on the CPU: (slot_begin in the step, num_tokens, index_begin, place of the sequence in `sequences`), the
    layout's own tiles cut to the step. split_tokens int32 [T] on the CPU: those of the layout's tiles, see ``key_splits.py``.
    """

    layout: SequenceLayout
    sequences: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    num_tokens: int
    cu_seqlens: torch.Tensor
    positions: torch.Tensor
    intervals: torch.Tensor
    slots_in_layout: torch.Tensor
    tiles: torch.Tensor
    split_tokens: torch.Tensor


def _per_sequence(name: str, value: int | Sequence[int], count: int) -> list[int]:
    if isinstance(value, (Sequence, torch.Tensor, np.ndarray)):
        if len(value) != count:
            raise ValueError(f"{name} must be one int or one per listed sequence ({count}), got {len(value)}")
        return [checked_int(name, v, 0) for v in value]
    return [checked_int(name, value, 0)] * count


def make_step(
    layout: SequenceLayout,
    sequences: int | Sequence[int],
    begin: int | Sequence[int],
    end: int | Sequence[int],
    tile_tokens: int,
) -> LayoutStep:
    """See `SequenceLayout.step`."""
    if layout.permutation is not None:
        raise ValueError("step: layout is ordered by a tube pattern; give it the layout in its original order")
    several = sequences if isinstance(sequences, (Sequence, torch.Tensor, np.ndarray)) else [sequences]
    listed = [checked_int("sequences", s, 0, layout.num_sequences - 1) for s in several]
    if not listed:
        raise ValueError("sequences is empty; a step covers at least one sequence")
    if len(set(listed)) != len(listed):
        raise ValueError(f"sequences lists one twice: {listed}")
    begins, ends = _per_sequence("begin", begin, len(listed)), _per_sequence("end", end, len(listed))
    for s, b, e in zip(listed, begins, ends, strict=True):
        _check_range(layout, s, b, e)

    cu = layout._table.cu_seqlens
    slots = np.concatenate([np.arange(cu[s] + b, cu[s] + e) for s, b, e in zip(listed, begins, ends, strict=True)])
    offsets = np.cumsum([0, *(e - b for b, e in zip(begins, ends, strict=True))])
    all_tiles = layout._tiles(tile_tokens)
    all_lengths = layout.schedule(tile_tokens).split_tokens.numpy()
    tiles, lengths = [], []
    for i, (s, b, e) in enumerate(zip(listed, begins, ends, strict=True)):
        of_sequence = slice(*np.searchsorted(all_tiles[:, 3], (s, s + 1)))
        rows = all_tiles[of_sequence]
        first = np.maximum(rows[:, 2], b)
        last = np.minimum(rows[:, 2] + rows[:, 1], e)
        kept = first < last
        first, last = first[kept], last[kept]
        lengths.append(all_lengths[of_sequence][kept])
        tiles.append(np.stack((offsets[i] + first - b, last - first, first, np.full_like(first, i)), axis=1))

    device = layout.positions.device
    slots_in_layout = torch.from_numpy(slots.astype(np.int64)).to(device)
    return LayoutStep(
        layout=layout,
        sequences=tuple(listed),
        begin=tuple(begins),
        end=tuple(ends),
        num_tokens=len(slots),
        cu_seqlens=torch.from_numpy(offsets.astype(np.int32)).to(device),
        positions=layout.positions[slots_in_layout],
        intervals=layout.intervals[slots_in_layout],
        slots_in_layout=slots_in_layout,
        tiles=torch.from_numpy(np.concatenate(tiles).astype(np.int32)),
        split_tokens=torch.from_numpy(np.concatenate(lengths)),
    )


def _check_range(layout: SequenceLayout, sequence: int, begin: int, end: int) -> None:
    table = layout._table
    length = int(table.cu_seqlens[sequence + 1] - table.cu_seqlens[sequence])
    if not begin < end <= length:
        raise ValueError(
            f"begin..end must be a range of tokens of sequence {sequence} (0..{length}), got {begin}..{end}"
        )
    first, last = table.segment_offsets[sequence], table.segment_offsets[sequence + 1]
    for name, edge in (("begin", begin), ("end", end)):
        if edge == length:
            continue
        i = first + np.searchsorted(table.index_begin[first:last], edge, side="right") - 1
        inside = edge - int(table.index_begin[i])
        segment = layout.sequences[sequence][i - first]
        if inside and isinstance(segment, Frame):
            raise ValueError(
                f"{name} {edge} cuts frame {int(table.ordinal[i])} of sequence {sequence} "
                f"({segment}, tokens {edge - inside}..{edge - inside + segment.num_tokens}); a step takes whole frames"
            )
