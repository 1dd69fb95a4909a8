"""Which segments lie between the sinks and the window of latest frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..layout.segments import checked_int
from .plan import CachePlan
from .visibility import require_unseen

if TYPE_CHECKING:
    from ..layout import SequenceLayout

__all__ = ["evicted_rows"]


def evicted_rows(
    layout: SequenceLayout, plan: CachePlan, sequence: int, committed: int, window_frames: int, sink_frames: int
) -> np.ndarray:
    """Rows of the plan: what lies behind the first ``sink_frames`` committed frames of ``sequence`` (or, without sinks, behind
    what precedes its first frame) and before the latest ``window_frames``, text between those frames included.

    Raises:
        TypeError, ValueError: a number of frames that is no int or negative; a segment that a later query sees.
    """
    window_frames = checked_int("window_frames", window_frames, 0)
    sink_frames = checked_int("sink_frames", sink_frames, 0)
    rows = plan.rows_before(sequence, committed)
    rows = rows[plan.end[rows] <= committed]
    frames = rows[plan.is_frame[rows]]
    if len(frames) <= window_frames + sink_frames:
        return rows[:0]
    first = frames[sink_frames - 1] + 1 if sink_frames else frames[0]
    last = frames[len(frames) - window_frames] if window_frames else frames[-1] + 1
    gone = np.arange(first, last)
    what = f"evict with window_frames={window_frames} and sink_frames={sink_frames} gives up tokens"
    require_unseen(layout, sequence, int(plan.begin[first]), int(plan.end[last - 1]), committed, what)
    return gone
