"""Which sequences may hold the same pages: those whose tokens so far are placed, rotated and seen alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .plan import CachePlan
from .visibility import require_unseen, require_whole_visibility

if TYPE_CHECKING:
    from ..layout import SequenceLayout
    from .table import PageTable

__all__ = ["check_fork"]


def check_fork(layout: SequenceLayout, plan: CachePlan, table: PageTable, source: int, target: int, end: int) -> None:
    """Raise ValueError unless tokens 0..end-1 of ``target`` may be those of ``source``.

    Segments, positions and visibility of the tokens must agree (that their ids do is the caller's promise), and what
    ``source`` dropped or evicted must not be missed by later queries of ``target``.
    """
    if plan.cuts_frame(source, end):
        raise ValueError(f"fork at token {end} of sequence {source} lies inside a frame")
    if end > plan.length(target):
        raise ValueError(f"sequence {target} has {plan.length(target)} tokens, fewer than the {end} to fork")
    rows, others = plan.rows_before(source, end), plan.rows_before(target, end)
    agree = len(rows) == len(others) and not plan.cuts_frame(target, end)
    for column in (plan.begin, plan.is_frame, np.minimum(plan.end, end)):
        agree = agree and np.array_equal(column[rows], column[others])
    if not agree:
        raise ValueError(f"sequences {source} and {target} differ in the segments of their first {end} tokens")
    first, second = int(layout.cu_seqlens[source]), int(layout.cu_seqlens[target])
    for name, values in (("positions", layout.positions), ("visibility", layout.intervals)):
        if not values[first : first + end].equal(values[second : second + end]):
            raise ValueError(f"sequences {source} and {target} differ in the {name} of their first {end} tokens")
    for row in rows.tolist():
        begin, last = int(plan.begin[row]), int(plan.end[row])
        if table.evicted[row]:
            if last > end:
                raise ValueError(f"fork at token {end} of sequence {source} lies inside text that was evicted")
            require_unseen(layout, target, begin, last, end, "fork shares evicted tokens")
        elif table.lengths[row] < last - begin:
            require_whole_visibility(layout, target, begin, last, end, "fork shares dropped tokens")
