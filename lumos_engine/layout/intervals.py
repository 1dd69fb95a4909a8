"""Visibility as five integers per query: (sink_end, history_begin, history_end, span_begin, span_end).

Query q sees key k of its own sequence when

    (k < sink_end or history_begin <= k < history_end) and not hidden[k]   or   span_begin <= k < span_end

with all bounds in index units of the sequence.
"""

from __future__ import annotations

import numpy as np

from .positions import TokenGrid
from .segments import SegmentTable

NAMES = ("sink_end", "history_begin", "history_end", "span_begin", "span_end")


def block_causal(
    table: SegmentTable,
    grid: TokenGrid,
    sink_end: np.ndarray | None = None,
    history_begin: np.ndarray | None = None,
    frame_history_end: np.ndarray | None = None,
) -> np.ndarray:
    """int32 [tokens, 5]: causal text, bidirectional frames, causal order of frames.

    sink_end, history_begin [segments] default to 0; frame_history_end [segments] (read at frames only) to the begin of
    the frame.
    """
    frame = table.per_token(table.is_frame)
    begin = table.per_token(table.index_begin)
    intervals = np.zeros((len(frame), 5), dtype=np.int32)
    if sink_end is not None:
        intervals[:, 0] = table.per_token(sink_end)
    if history_begin is not None:
        intervals[:, 1] = table.per_token(history_begin)
    span_begin = np.where(frame, begin, grid.index)
    history_end = begin if frame_history_end is None else table.per_token(frame_history_end)
    intervals[:, 2] = np.where(frame, history_end, grid.index)
    intervals[:, 3] = span_begin
    intervals[:, 4] = np.where(frame, begin + table.per_token(table.num_tokens), grid.index + 1)
    return intervals


def windowed(table: SegmentTable, grid: TokenGrid, num_frames: int, sink_frames: int) -> np.ndarray:
    """int32 [tokens, 5]: block causal, with only the latest `num_frames` earlier frames, the first `sink_frames`
    frames and everything before the first frame visible as history."""
    frames = table.is_frame.nonzero()[0]
    num_sequences = len(table.cu_seqlens) - 1
    counts = np.bincount(table.sequence[frames], minlength=num_sequences)
    first = (np.cumsum(counts) - counts)[table.sequence]  # number, among all frames, of the sequence's first
    sink_end = np.zeros(len(table.sequence), dtype=np.int64)
    history_begin = sink_end.copy()
    windows = (table.frames_before > num_frames).nonzero()[0]
    if len(windows):
        frame_begin = table.index_begin[frames]
        frame_end = frame_begin + table.num_tokens[frames]
        oldest = first[windows] + table.frames_before[windows] - num_frames
        begin = frame_begin[oldest] if num_frames else frame_end[oldest - 1]
        kept = np.minimum(sink_frames, counts[table.sequence[windows]])
        sinks = frame_end[first[windows] + kept - 1] if sink_frames else frame_begin[first[windows]]
        # Where the sinks reach the window, the two ranges are the plain history.
        apart = sinks < begin
        sink_end[windows] = np.where(apart, sinks, 0)
        history_begin[windows] = np.where(apart, begin, 0)
    return block_causal(table, grid, sink_end, history_begin)


def check_intervals(intervals: np.ndarray, lengths: np.ndarray) -> None:
    """Every bound within 0..length of its sequence and each range with begin <= end; ValueError naming the first offender.

    An empty range is legal, and so is a query that sees nothing.
    """
    limit = np.repeat(lengths, lengths)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    token = np.arange(len(limit)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    outside = (intervals < 0) | (intervals > limit[:, None])
    if outside.any():
        i, column = np.argwhere(outside)[0]
        raise ValueError(
            f"intervals: {NAMES[column]} of sequence {sequence[i]}, token {token[i]} is {intervals[i, column]}; "
            f"allowed is 0..{limit[i]}"
        )
    for begin, end in ((1, 2), (3, 4)):
        wrong = (intervals[:, begin] > intervals[:, end]).nonzero()[0]
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"intervals: sequence {sequence[i]}, token {token[i]} has {NAMES[begin]} {intervals[i, begin]} > "
                f"{NAMES[end]} {intervals[i, end]}; a range begins no later than it ends"
            )
