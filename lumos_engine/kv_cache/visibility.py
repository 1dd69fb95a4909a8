"""What queries that are still to come see of tokens that a cache gives up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..layout import SequenceLayout

__all__ = ["require_unseen", "require_whole_visibility"]


def _later(layout: SequenceLayout, sequence: int, index: int) -> Tensor:
    """Intervals [queries, 5] of the queries index, index + 1, ... of ``sequence``."""
    begin, end = layout.cu_seqlens[sequence : sequence + 2].tolist()
    return layout.intervals[begin + index : end]


def require_unseen(layout: SequenceLayout, sequence: int, first: int, last: int, index: int, what: str) -> None:
    """Raise ValueError, beginning with ``what``, if a query at ``index`` or later sees any of tokens first..last-1."""
    sink_end, history_begin, history_end, span_begin, span_end = _later(layout, sequence, index).unbind(1)
    seen = sink_end > first
    for begin, end in ((history_begin, history_end), (span_begin, span_end)):
        seen |= begin.clamp(min=first) < end.clamp(max=last)
    if bool(seen.any()):
        raise ValueError(
            f"{what} {first}..{last - 1} of sequence {sequence}, which token {index + int(seen.nonzero()[0])} still sees"
        )


def require_whole_visibility(
    layout: SequenceLayout, sequence: int, first: int, last: int, index: int, what: str
) -> None:
    """Raise ValueError, beginning with ``what``, if a query at ``index`` or later sees a part of tokens first..last-1 only:
    tokens that are kept of them no longer have their own index."""
    later = _later(layout, sequence, index)
    if bool(((later > first) & (later < last)).any()):
        raise ValueError(
            f"{what} of {first}..{last - 1} of sequence {sequence}, of which a later query sees only a part"
        )
