"""Which tokens of finished frames are not kept as history (DESIGN: the `drop` history mode)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .plan import CachePlan
from .visibility import require_whole_visibility

if TYPE_CHECKING:
    from ..layout import LayoutStep, SequenceLayout

__all__ = ["dropped_tokens"]


def dropped_tokens(
    layout: SequenceLayout, plan: CachePlan, step: LayoutStep, ends: Sequence[int], keep: Tensor
) -> list[tuple[int, np.ndarray]]:
    """Frames before ``ends`` that lose tokens: row in the plan, and int64 offsets in the step of the tokens that they keep.

    ``keep``: bool [tokens of the step].

    Raises:
        ValueError: ``keep`` of another dtype or shape; dropped tokens that are text, or belong to a frame that a later
            query sees in part (kept tokens no longer have their own index).
    """
    if keep.dtype != torch.bool or keep.shape != (step.num_tokens,):
        raise ValueError(f"keep must be bool [{step.num_tokens}], got {keep.dtype} {list(keep.shape)}")
    kept = keep.cpu().numpy()
    found = []
    offset = 0
    for sequence, begin, stop, end in zip(step.sequences, step.begin, ends, step.end, strict=True):
        for row in range(plan.segment_offsets[sequence], plan.segment_offsets[sequence + 1]):
            first, last = max(begin, int(plan.begin[row])), min(stop, int(plan.end[row]))
            at = offset + first - begin
            part = kept[at : at + max(last - first, 0)]
            if part.all():
                continue
            if not plan.is_frame[row]:
                raise ValueError(f"keep drops text tokens of sequence {sequence}; only tokens of frames can be dropped")
            require_whole_visibility(layout, sequence, first, last, last, "keep drops tokens")
            found.append((row, at + part.nonzero()[0]))
        offset += end - begin
    return found
