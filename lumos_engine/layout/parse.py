"""Segments read off token ids in the original's format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .segments import Frame, Segment, Text, checked_int
from .vocabulary import Vocabulary


def parse_tokens(
    tokens: torch.Tensor, vocabulary: Vocabulary, lengths: Sequence[int] | None = None
) -> list[list[Segment]]:
    """Segments of each packed sequence of `tokens`; see `SequenceLayout.from_tokens`."""
    if not isinstance(tokens, torch.Tensor):
        raise TypeError(f"tokens must be a tensor, got {type(tokens).__name__}")
    if tokens.dtype not in (torch.int16, torch.int32, torch.int64):
        raise TypeError(f"tokens must be an integer tensor, got {tokens.dtype}")
    if tokens.dim() != 1 or not tokens.numel():
        raise ValueError(f"tokens must have shape [tokens] with at least one token, got {tuple(tokens.shape)}")
    if not isinstance(vocabulary, Vocabulary):
        raise TypeError(f"vocabulary must be a Vocabulary, got {type(vocabulary).__name__}")
    ids = tokens.detach().cpu().numpy()
    if lengths is None:
        counts = [len(ids)]
    else:
        counts = [checked_int(f"lengths[{i}]", n, 1) for i, n in enumerate(lengths)]
        if sum(counts) != len(ids):
            raise ValueError(f"lengths adds up to {sum(counts)}, tokens holds {len(ids)}")
    ends = np.cumsum(counts).tolist()
    return [
        _parse_sequence(ids[end - n : end], vocabulary, i) for i, (n, end) in enumerate(zip(counts, ends, strict=True))
    ]


def _parse_sequence(ids: np.ndarray, vocabulary: Vocabulary, sequence: int) -> list[Segment]:
    segments: list[Segment] = []
    parsed = 0  # everything before belongs to a segment already
    for begin in _frame_starts(ids, vocabulary):
        if begin < parsed:
            continue  # inside the frame before, whose content check has refused it already
        frame = _parse_frame(ids, begin, vocabulary, sequence)
        if begin > parsed:
            segments.append(Text(begin - parsed))
        segments.append(frame)
        parsed = begin + frame.num_tokens
    if parsed < len(ids):
        segments.append(Text(len(ids) - parsed))
    return segments


def _frame_starts(ids: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    """Offsets of the image_start tokens that count: inside a closed video where the sequence has both markers."""
    starts = np.flatnonzero(ids == vocabulary.image_start)
    opens = np.flatnonzero(ids == vocabulary.video_start)
    closes = np.flatnonzero(ids == vocabulary.video_end)
    if len(opens) and len(closes):
        last_open = np.append(-1, opens)[np.searchsorted(opens, starts)]
        last_close = np.append(-1, closes)[np.searchsorted(closes, starts)]
        starts = starts[(last_open > last_close) & (starts < closes[-1])]
    return starts.tolist()


def _parse_frame(ids: np.ndarray, begin: int, vocabulary: Vocabulary, sequence: int) -> Frame:
    def fail(offset: int, what: str) -> ValueError:
        return ValueError(f"tokens: sequence {sequence}, offset {offset}: {what}")

    if begin + 3 > len(ids):
        raise fail(begin, "the frame that begins here is cut short: its size tokens are missing")
    cells = []
    for offset, name, stride in (
        (begin + 1, "height", vocabulary.strides[1]),
        (begin + 2, "width", vocabulary.strides[2]),
    ):
        token = int(ids[offset])
        if not vocabulary.is_number(token) or token == vocabulary.size_zero:
            raise fail(offset, f"id {token} is no size token; the frame's {name} is expected here")
        cells.append((token - vocabulary.size_zero) * vocabulary.size_unit // stride)
    frame = Frame(cells[0], cells[1], newlines=True, header=3, footer=1)
    content = ids[begin + 3 : begin + 3 + frame.content_tokens]
    column = np.arange(len(content)) % frame.row_tokens
    # Training masks newline tokens too, so the mask id is legal at every place of the content.
    wrong = (content != vocabulary.mask) & np.where(
        column == frame.width, content != vocabulary.newline, ~vocabulary.is_visual(content)
    )
    if wrong.any():
        at = int(np.argmax(wrong))
        row, token = at // frame.row_tokens, int(content[at])
        expected = "a newline" if column[at] == frame.width else "a visual code"
        raise fail(
            begin + 3 + at,
            f"id {token} where {expected} is expected (row {row}, column {column[at]} of the {frame.height} x "
            f"{frame.width} frame that begins at offset {begin}): a wrong row length, or a frame cut short",
        )
    end = begin + frame.num_tokens
    if end > len(ids):
        raise fail(
            begin,
            f"the {frame.height} x {frame.width} frame that begins here is cut short: it has "
            f"{frame.num_tokens} tokens, {len(ids) - begin} are given",
        )
    if ids[end - 1] != vocabulary.image_end:
        raise fail(
            end - 1,
            f"id {int(ids[end - 1])} where image_end ({vocabulary.image_end}) closes the frame that "
            f"begins at offset {begin}",
        )
    return frame
