"""Segments: the runs of text and the frames that a sequence is made of."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_INT32_MAX = 2**31 - 1


def checked_int(name: str, value: object, minimum: int, maximum: int = _INT32_MAX) -> int:
    """`value` as an int in [minimum, maximum]; TypeError or ValueError naming `name` otherwise."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got the bool {value}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} must be in {minimum}..{maximum}, got {number}")
    return number


@dataclass(frozen=True)
class Text:
    """A run of tokens under causal attention: text, separators, video header, video end.

    num_tokens: at least 1.
    """

    num_tokens: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", checked_int("Text.num_tokens", self.num_tokens, 1))


@dataclass(frozen=True)
class Frame:
    """One latent frame: `header` tokens, `height` rows of `width` codes (each closed by a newline token when
    `newlines`), `footer` tokens. Attention inside it is bidirectional, header and footer included.

    height, width: latent rows and columns, at least 1. The original format is newlines=True, header=3, footer=1.
    """

    height: int
    width: int
    newlines: bool = False
    header: int = 0
    footer: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("height", 1), ("width", 1), ("header", 0), ("footer", 0)):
            object.__setattr__(self, name, checked_int(f"Frame.{name}", getattr(self, name), minimum))
        if not isinstance(self.newlines, bool):
            raise TypeError(f"Frame.newlines must be a bool, got {type(self.newlines).__name__}")

    @property
    def row_tokens(self) -> int:
        """Tokens of one row: width, plus one where rows end in a newline token."""
        return self.width + self.newlines

    @property
    def content_tokens(self) -> int:
        """Tokens between header and footer, the newline column included."""
        return self.height * self.row_tokens

    @property
    def num_tokens(self) -> int:
        return self.header + self.content_tokens + self.footer


Segment = Text | Frame


def checked_sequences(sequences: Iterable[Sequence[Segment]]) -> tuple[tuple[Segment, ...], ...]:
    """`sequences` as a tuple of non-empty tuples of segments; TypeError or ValueError naming the offender otherwise."""
    if isinstance(sequences, (Text, Frame)):
        raise TypeError("sequences must be a list of lists of Text and Frame, got one segment")
    checked = []
    for i, segments in enumerate(sequences):
        if isinstance(segments, (Text, Frame)):
            raise TypeError(f"sequences[{i}] must be a list of Text and Frame, got {segments}; wrap it in a list")
        row = tuple(segments)
        for j, segment in enumerate(row):
            if not isinstance(segment, (Text, Frame)):
                raise TypeError(f"sequences[{i}][{j}] must be a Text or a Frame, got {type(segment).__name__}")
        if not row:
            raise ValueError(f"sequences[{i}] holds no segment; a sequence has at least one")
        checked.append(row)
    if not checked:
        raise ValueError("sequences is empty; a layout holds at least one sequence")
    return tuple(checked)


@dataclass(frozen=True)
class SegmentTable:
    """The segments of all packed sequences as int64 columns [segments], for vectorised work per token.

    sequence: packed sequence that holds it; index_begin: index of its first token in that sequence; slot_begin: packed
    slot of its first token; ordinal: number of the frame in its sequence, -1 for text; frames_before: frames of the
    sequence that lie before the segment; newline_column: the column of newline tokens, -1 without.
    cu_seqlens [sequences + 1]: slot where each sequence begins. segment_offsets [sequences + 1]: the same in segments.
    """

    sequence: np.ndarray
    index_begin: np.ndarray
    slot_begin: np.ndarray
    num_tokens: np.ndarray
    is_frame: np.ndarray
    ordinal: np.ndarray
    frames_before: np.ndarray
    header: np.ndarray
    content_tokens: np.ndarray
    row_tokens: np.ndarray
    newline_column: np.ndarray
    cu_seqlens: np.ndarray
    segment_offsets: np.ndarray

    @classmethod
    def of(cls, sequences: tuple[tuple[Segment, ...], ...]) -> SegmentTable:
        rows = np.array(
            [
                (s.num_tokens, 1, s.header, s.content_tokens, s.row_tokens, s.width if s.newlines else -1)
                if isinstance(s, Frame)
                else (s.num_tokens, 0, 0, 0, 1, -1)
                for segments in sequences
                for s in segments
            ],
            dtype=np.int64,
        )
        num_tokens, is_frame, header, content_tokens, row_tokens, newline_column = np.ascontiguousarray(rows.T)
        counts = np.array([len(segments) for segments in sequences], dtype=np.int64)
        segment_offsets = np.concatenate(([0], np.cumsum(counts)))
        sequence = np.repeat(np.arange(len(sequences), dtype=np.int64), counts)
        ends = np.cumsum(num_tokens)
        if ends[-1] > _INT32_MAX:
            raise ValueError(f"sequences hold {ends[-1]} tokens; a layout holds at most {_INT32_MAX}")
        slot_begin = ends - num_tokens
        cu_seqlens = np.concatenate(([0], ends[segment_offsets[1:] - 1]))
        frames = np.cumsum(is_frame) - is_frame
        frames_before = frames - frames[segment_offsets[:-1]][sequence]
        return cls(
            sequence=sequence,
            index_begin=slot_begin - cu_seqlens[sequence],
            slot_begin=slot_begin,
            num_tokens=num_tokens,
            is_frame=is_frame.astype(bool),
            ordinal=np.where(is_frame, frames_before, -1),
            frames_before=frames_before,
            header=header,
            content_tokens=content_tokens,
            row_tokens=row_tokens,
            newline_column=newline_column,
            cu_seqlens=cu_seqlens,
            segment_offsets=segment_offsets,
        )

    @property
    def total_tokens(self) -> int:
        return int(self.cu_seqlens[-1])

    def per_token(self, column: np.ndarray) -> np.ndarray:
        """A value per segment, repeated for each of its tokens: [segments] -> [tokens]."""
        return np.repeat(column, self.num_tokens)
