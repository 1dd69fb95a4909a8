"""SequenceLayout: where every packed token lies, what it sees and how it is rotated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from .intervals import block_causal, check_intervals, windowed
from .parse import parse_tokens
from .positions import TokenGrid, checked_strides, token_positions
from .schedule import Schedule, build_schedule, tile_rows
from .segments import Frame, Segment, SegmentTable, Text, checked_int, checked_sequences
from .step import LayoutStep, make_step
from .tube_order import hidden_last, hidden_of, inverse
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..tubes import TubePattern

_STRIDES = (4, 8, 8)


class SequenceLayout:
    """Layout of packed sequences. Built by the factories only; immutable, its tensors included: never write to them.

    A query sees a key of its own sequence, by their indices in it, when

        (key < sink_end or history_begin <= key < history_end) and not hidden[key]  or  span_begin <= key < span_end

    num_tokens, num_sequences: of all packed sequences.
    sequences: tuple of segments per packed sequence. strides: position strides (time, height, width).
    cu_seqlens int32 [num_sequences + 1]: packed slot where each sequence begins.
    positions int32 [num_tokens, 3]: (t, h, w) for MM-RoPE.
    intervals int32 [num_tokens, 5]: (sink_end, history_begin, history_end, span_begin, span_end) per query.
    hidden bool [num_tokens] or None: not seen as history; still seen inside the span.
    index int32 [num_tokens]: index in its own sequence. sequence_id int32 [num_tokens].
    frame_id int32 [num_tokens]: ordinal of the frame among the frames of its sequence, -1 outside frames.
    content bool [num_tokens]: between header and footer of a frame, newline tokens included. newline bool [num_tokens].
    clean_frames: per sequence, how many leading frames are clean copies that serve as history only (teacher forcing),
    0 in other layouts.
    permutation, inverse_permutation: int64 [num_tokens]; packed slot i holds original token permutation[i]. None where the
    order is the original one, as in every layout but those of `with_tube`. All tensors above are in packed order.
    """

    num_tokens: int
    num_sequences: int
    sequences: tuple[tuple[Segment, ...], ...]
    strides: tuple[int, int, int]
    cu_seqlens: torch.Tensor
    positions: torch.Tensor
    intervals: torch.Tensor
    hidden: torch.Tensor | None
    index: torch.Tensor
    sequence_id: torch.Tensor
    frame_id: torch.Tensor
    content: torch.Tensor
    newline: torch.Tensor
    clean_frames: tuple[int, ...]
    permutation: torch.Tensor | None
    inverse_permutation: torch.Tensor | None
    _table: SegmentTable
    _schedules: dict[int, Schedule]
    _key: list[str]  # empty until the key is first asked for

    def __init__(self) -> None:
        raise TypeError(
            "SequenceLayout is built by from_segments, from_tokens, frame_window, teacher_forcing or from_intervals"
        )

    # Factories

    @classmethod
    def from_segments(
        cls, sequences: Iterable[Sequence[Segment]], strides: tuple[int, int, int] = _STRIDES
    ) -> SequenceLayout:
        """Causal text, bidirectional frames, causal order of frames; one list of segments per packed sequence.

        Raises TypeError or ValueError naming the segment or argument.
        """
        checked = checked_sequences(sequences)
        table = SegmentTable.of(checked)
        grid = TokenGrid.of(table)
        return cls._of(checked, table, grid, block_causal(table, grid), checked_strides(strides))

    @classmethod
    def frame_window(
        cls,
        sequences: Iterable[Sequence[Segment]],
        num_frames: int,
        sink_frames: int = 0,
        strides: tuple[int, int, int] = _STRIDES,
    ) -> SequenceLayout:
        """As `from_segments`, but a token sees of the frames before it only the latest `num_frames` (its own frame is not
        counted) and the first `sink_frames`. Everything before the first frame of the sequence stays visible, as does
        text that lies inside the window.
        """
        num_frames = checked_int("num_frames", num_frames, 0)
        sink_frames = checked_int("sink_frames", sink_frames, 0)
        checked = checked_sequences(sequences)
        table = SegmentTable.of(checked)
        grid = TokenGrid.of(table)
        return cls._of(checked, table, grid, windowed(table, grid, num_frames, sink_frames), checked_strides(strides))

    @classmethod
    def teacher_forcing(
        cls, sequences: Iterable[Sequence[Segment]], strides: tuple[int, int, int] = _STRIDES
    ) -> SequenceLayout:
        """Each sequence [Text..., frame 1..N] becomes [Text..., clean 1..N-1, noisy 1..N].

        Clean frames and text see what they see in `from_segments`. Noisy frame k has the positions of frame k and sees the
        text, the clean frames before k and itself. `sequences` of the layout lists the copies; `clean_frames` is N - 1.
        ValueError for a sequence without frames or with text after a frame.
        """
        checked = checked_sequences(sequences)
        expanded: list[tuple[Segment, ...]] = []
        source: list[int] = []  # per segment of the expansion, the segment of its own sequence that it copies
        clean_frames = []
        for i, segments in enumerate(checked):
            num_text = next((j for j, s in enumerate(segments) if isinstance(s, Frame)), len(segments))
            num_frames = len(segments) - num_text
            if not num_frames:
                raise ValueError(f"sequences[{i}] holds no frame; teacher forcing needs at least one")
            late = next((j for j in range(num_text, len(segments)) if isinstance(segments[j], Text)), None)
            if late is not None:
                raise ValueError(
                    f"sequences[{i}][{late}] is text after a frame; teacher forcing takes text before frames"
                )
            expanded.append(segments[:-1] + segments[num_text:])
            source.extend(range(len(segments) - 1))
            source.extend(range(num_text, len(segments)))
            clean_frames.append(num_frames - 1)

        result = tuple(expanded)
        table = SegmentTable.of(result)
        grid = TokenGrid.of(table)
        # Frame k of the source begins, in its own sequence, where its clean copy begins here (the last one: where the first
        # noisy copy begins), and that is where the history of its noisy copy ends.
        source_begin = table.index_begin[table.segment_offsets[table.sequence] + np.array(source)]
        clean = np.array(clean_frames)[table.sequence]
        time = np.where(table.ordinal >= clean, table.ordinal - clean, table.ordinal)
        intervals = block_causal(table, grid, frame_history_end=source_begin)
        positions = token_positions(table, grid, checked_strides(strides), source_begin, time)
        return cls._of(
            result, table, grid, intervals, checked_strides(strides), positions, clean_frames=tuple(clean_frames)
        )

    @classmethod
    def from_tokens(
        cls, tokens: torch.Tensor, vocabulary: Vocabulary, lengths: Sequence[int] | None = None
    ) -> SequenceLayout:
        """Read the segments off ids in the original's format.

        tokens: integer tensor [tokens]; lengths: of the packed sequences, None for one. Where a sequence holds both
        video_start and video_end, only frames between them count, else all. ValueError naming sequence and offset for a
        frame that is cut short, has a wrong row length or an unknown size token.
        """
        return cls.from_segments(parse_tokens(tokens, vocabulary, lengths), strides=vocabulary.strides)

    @classmethod
    def from_intervals(
        cls,
        lengths: Sequence[int],
        intervals: torch.Tensor,
        positions: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        segments: Iterable[Sequence[Segment]] | None = None,
        strides: tuple[int, int, int] = _STRIDES,
    ) -> SequenceLayout:
        """Any layout of the form above.

        lengths: tokens of each packed sequence. intervals: integer tensor [tokens, 5] (see the class), every bound within
        0..length of its sequence and begin <= end; a query may see nothing. positions: integer tensor [tokens, 3], by
        default those of `segments`. hidden: bool [tokens]. segments: per sequence, adding up to its length, by default one
        Text. Raises TypeError or ValueError naming the argument, and the token.
        """
        if isinstance(lengths, int):
            raise TypeError("lengths must be a list of ints, got one int")
        counts = [checked_int(f"lengths[{i}]", n, 1) for i, n in enumerate(lengths)]
        if not counts:
            raise ValueError("lengths is empty; a layout holds at least one sequence")
        checked = checked_sequences([[Text(n)] for n in counts] if segments is None else segments)
        if len(checked) != len(counts):
            raise ValueError(f"segments lists {len(checked)} sequences, lengths {len(counts)}")
        for i, (row, n) in enumerate(zip(checked, counts, strict=True)):
            if sum(s.num_tokens for s in row) != n:
                raise ValueError(
                    f"segments[{i}] adds up to {sum(s.num_tokens for s in row)} tokens, lengths[{i}] is {n}"
                )
        bounds = _integers("intervals", intervals, (sum(counts), 5))  # before memory is taken for so many tokens
        table = SegmentTable.of(checked)
        grid = TokenGrid.of(table)
        check_intervals(bounds, np.array(counts))
        places = None
        if positions is not None:
            places = _integers("positions", positions, (table.total_tokens, 3))
            if places.min() < 0 or places.max() > 2**31 - 1:
                raise ValueError(f"positions must be in 0..{2**31 - 1}, got {places.min()}..{places.max()}")
            places = places.astype(np.int32)
        layout = cls._of(checked, table, grid, bounds.astype(np.int32), checked_strides(strides), places)
        return layout if hidden is None else layout.with_hidden(hidden)

    @classmethod
    def _of(
        cls,
        sequences: tuple[tuple[Segment, ...], ...],
        table: SegmentTable,
        grid: TokenGrid,
        intervals: np.ndarray,
        strides: tuple[int, int, int],
        positions: np.ndarray | None = None,
        clean_frames: tuple[int, ...] | None = None,
    ) -> SequenceLayout:
        if positions is None:
            positions = token_positions(table, grid, strides)
        lengths = np.diff(table.cu_seqlens)
        sequence_id = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        layout = cls._from_parts(
            num_tokens=table.total_tokens,
            num_sequences=len(sequences),
            sequences=sequences,
            strides=strides,
            cu_seqlens=torch.from_numpy(table.cu_seqlens.astype(np.int32)),
            positions=torch.from_numpy(positions),
            intervals=torch.from_numpy(intervals),
            hidden=None,
            index=torch.from_numpy(grid.index.astype(np.int32)),
            sequence_id=torch.from_numpy(sequence_id),
            frame_id=torch.from_numpy(table.per_token(table.ordinal.astype(np.int32))),
            content=torch.from_numpy(grid.content),
            newline=torch.from_numpy(grid.newline),
            clean_frames=clean_frames or (0,) * len(sequences),
            permutation=None,
            inverse_permutation=None,
            _table=table,
        )
        layout.schedule()  # now, so that torch.compile finds tensors where it would otherwise have to trace numpy
        return layout

    @classmethod
    def _from_parts(cls, **parts: Any) -> SequenceLayout:
        layout = object.__new__(cls)
        layout.__dict__.update(parts, _schedules={}, _key=[])
        return layout

    def _parts(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_schedules", "_key")}

    # Derived layouts

    def with_hidden(self, hidden: torch.Tensor | None) -> SequenceLayout:
        """The same layout with `hidden` bool [num_tokens], in packed order: keys that are not seen as history. None: nothing
        hidden."""
        if hidden is not None:
            if not isinstance(hidden, torch.Tensor) or hidden.dtype != torch.bool:
                got = hidden.dtype if isinstance(hidden, torch.Tensor) else type(hidden).__name__
                raise TypeError(f"hidden must be a bool tensor, got {got}")
            if tuple(hidden.shape) != (self.num_tokens,):
                raise ValueError(f"hidden must have shape ({self.num_tokens},), got {tuple(hidden.shape)}")
            hidden = hidden.to(self.positions.device, copy=True).contiguous()
        layout = self._from_parts(**{**self._parts(), "hidden": hidden})
        layout.schedule()  # as in _of
        return layout

    def with_tube(self, pattern: TubePattern | Sequence[TubePattern | None]) -> SequenceLayout:
        """The layout in which the masked tokens of `pattern` are hidden, and stand last in their frame.

        Attention is that of `with_hidden`, but hidden keys fill whole tiles, which no later token visits. Attention
        inside a frame is bidirectional and positions are explicit, so the order there is free. Tensors enter through
        `reorder` and leave through `restore`; `LumosModel` does both, its callers keep the original order.

        pattern: of every sequence, or a list with one for each; None leaves a sequence as it is. It has a row for each
        frame, as in `TubePattern.token_mask`; in a teacher-forcing layout the clean copies, which are the history, hide theirs.
        Earlier hidden keys are replaced.

        Raises TypeError for another type; ValueError where pattern and frames do not fit each other, where some token sees
        only a part of a frame with masked tokens (`from_intervals`), and for a layout that is reordered already.
        """
        if self.permutation is not None:
            raise ValueError("layout is ordered by a pattern already; give with_tube the layout in its original order")
        hidden = hidden_of(self, pattern)
        order = hidden_last(self._table, self.intervals.cpu().numpy(), hidden)
        permutation = torch.from_numpy(order).to(self.positions.device)
        names = ("positions", "intervals", "index", "content", "newline")
        parts = {name: getattr(self, name)[permutation] for name in names}
        parts["hidden"] = torch.from_numpy(hidden).to(self.positions.device)[permutation]
        parts["permutation"] = permutation
        parts["inverse_permutation"] = inverse(order).to(self.positions.device)
        layout = self._from_parts(**{**self._parts(), **parts})
        layout.schedule()  # as in _of
        return layout

    def to(self, device: torch.device | str) -> SequenceLayout:
        """The layout with its tensors on `device`; itself when they are there. Schedules stay on the CPU and are shared."""
        target = torch.empty(0, device=device).device
        if self.positions.device == target:
            return self
        moved = {k: v.to(target) if isinstance(v, torch.Tensor) else v for k, v in self._parts().items()}
        layout = self._from_parts(**moved)
        layout.__dict__.update(_schedules=self._schedules, _key=self._key)
        return layout

    # Order of tokens

    def reorder(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [num_tokens, ...] from the original order to the packed one; itself where they are the same."""
        return x if self.permutation is None else x.index_select(0, self.permutation)

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `reorder`."""
        return x if self.inverse_permutation is None else x.index_select(0, self.inverse_permutation)

    # Reading

    def segments(self, sequence: int) -> list[tuple[Segment, int, int]]:
        """(segment, begin index, end index) of each segment of one sequence."""
        sequence = checked_int("sequence", sequence, 0, self.num_sequences - 1)
        first = self._table.segment_offsets[sequence]
        begins = self._table.index_begin[first : first + len(self.sequences[sequence])].tolist()
        return [(s, b, b + s.num_tokens) for s, b in zip(self.sequences[sequence], begins, strict=True)]

    def visible(self, sequence: int) -> torch.Tensor:
        """Dense mask of one sequence, bool [n, n] (query, key). For tests and the reference: O(n^2) memory."""
        from ..reference.mask import visible

        return visible(self, checked_int("sequence", sequence, 0, self.num_sequences - 1))

    def schedule(self, tile_tokens: int = 64) -> Schedule:
        """Tiles of at most `tile_tokens` tokens and the runs of key tiles each visits; built once and cached."""
        schedule = self._schedules.get(tile_tokens)
        if schedule is None:
            checked_int("tile_tokens", tile_tokens, 1)
            hidden = None if self.hidden is None else self.hidden.cpu().numpy()
            schedule = build_schedule(self._table, self.intervals.cpu().numpy(), hidden, tile_tokens)
            self._schedules[tile_tokens] = schedule
        return schedule

    def _tiles(self, tile_tokens: int) -> np.ndarray:
        return tile_rows(self._table, checked_int("tile_tokens", tile_tokens, 1))

    def step(
        self,
        sequences: int | Sequence[int],
        begin: int | Sequence[int],
        end: int | Sequence[int],
        tile_tokens: int = 64,
    ) -> LayoutStep:
        """The query side of one call: tokens begin..end (indices) of each listed sequence.

        begin, end: one int for all, or one per listed sequence. Text may be cut, a frame may not: ValueError.
        """
        return make_step(self, sequences, begin, end, tile_tokens)

    @property
    def key(self) -> str:
        """sha256, in hex, of everything that decides attention and rotation. Layouts are equal when their keys are."""
        if not self._key:
            digest = hashlib.sha256(repr((self.sequences, self.strides, self.clean_frames)).encode())
            digest.update(self.intervals.cpu().numpy().tobytes())
            digest.update(self.positions.cpu().numpy().tobytes())
            if self.hidden is not None:
                digest.update(self.hidden.cpu().numpy().tobytes())
            if self.permutation is not None:
                digest.update(self.permutation.cpu().numpy().tobytes())
            self._key.append(digest.hexdigest())
        return self._key[0]

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, SequenceLayout) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        hidden = "" if self.hidden is None else f", {int(self.hidden.sum())} hidden"
        return f"SequenceLayout({self.num_sequences} sequences, {self.num_tokens} tokens{hidden})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"SequenceLayout is immutable; cannot set {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"SequenceLayout is immutable; cannot delete {name}")


def _integers(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """An integer tensor of `shape` as a fresh int64 array; TypeError or ValueError naming it otherwise."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8):
        raise TypeError(f"{name} must be an integer tensor, got {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    return tensor.detach().cpu().to(torch.int64, copy=True).numpy()
