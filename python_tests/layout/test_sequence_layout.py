"""What tokens see and where they are, for each factory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.layout import Frame, SequenceLayout, Text

from .helpers import any_layout, dense, packed, text_then_frames

FIELDS = ("positions", "intervals", "index", "frame_id", "content", "newline")


def frame_of(layout: SequenceLayout, sequence: int) -> torch.Tensor:
    """Ordinal of each token's frame, -1 for text."""
    begin, end = layout.cu_seqlens[sequence], layout.cu_seqlens[sequence + 1]
    return layout.frame_id[begin:end].long()


@given(packed)
def test_block_causal(sequences):
    layout = SequenceLayout.from_segments(sequences)
    assert layout.num_sequences == len(sequences) and layout.clean_frames == (0,) * len(sequences)
    for s in range(layout.num_sequences):
        frame = frame_of(layout, s)
        n = len(frame)
        same = (frame[:, None] == frame[None]) & (frame >= 0)
        causal = torch.arange(n)[None] <= torch.arange(n)[:, None]
        assert (dense(layout, s) == (causal | same)).all()


@given(packed)
def test_tokens_one_by_one(sequences):
    layout = SequenceLayout.from_segments(sequences, strides=(3, 5, 7))
    slot = 0
    for s, segments in enumerate(sequences):
        assert int(layout.cu_seqlens[s]) == slot
        index, ordinal, origin = 0, -1, None
        for segment in segments:
            is_frame = isinstance(segment, Frame)
            ordinal += is_frame
            if is_frame and origin is None:
                origin = index + segment.header
            for i in range(segment.num_tokens):
                cell = i - segment.header if is_frame else -1
                content = is_frame and 0 <= cell < segment.content_tokens
                row, column = divmod(cell, segment.row_tokens) if content else (0, 0)
                position = [origin + 3 * ordinal, origin + 5 * row, origin + 7 * column] if content else [index] * 3
                assert layout.positions[slot].tolist() == position
                assert int(layout.index[slot]) == index and int(layout.sequence_id[slot]) == s
                assert int(layout.frame_id[slot]) == (ordinal if is_frame else -1)
                assert bool(layout.content[slot]) == content
                assert bool(layout.newline[slot]) == (content and segment.newlines and column == segment.width)
                index, slot = index + 1, slot + 1
    assert slot == layout.num_tokens


@given(packed)
def test_packing_is_concatenation(sequences):
    layout = SequenceLayout.from_segments(sequences)
    alone = [SequenceLayout.from_segments([segments]) for segments in sequences]
    for field in FIELDS:
        assert torch.equal(getattr(layout, field), torch.cat([getattr(a, field) for a in alone])), field


@given(packed, st.integers(0, 3), st.integers(0, 2))
def test_frame_window(sequences, num_frames, sink_frames):
    layout = SequenceLayout.frame_window(sequences, num_frames, sink_frames)
    whole = SequenceLayout.from_segments(sequences)
    assert torch.equal(layout.positions, whole.positions)
    for s in range(len(sequences)):
        mask, full = dense(layout, s), dense(whole, s)
        frame = frame_of(layout, s)
        assert not (mask & ~full).any()
        count, begins = 0, []
        for segment, begin, end in layout.segments(s):
            if isinstance(segment, Frame):
                begins.append(begin)
            before = count  # frames before this segment
            for q in range(begin, end):
                seen = {int(f) for f in frame[mask[q]]} - {-1}
                own = {count} if isinstance(segment, Frame) else set()
                recent = set(range(max(0, before - num_frames), before))
                assert seen == own | recent | set(range(min(sink_frames, before)))
            count += isinstance(segment, Frame)
        prompt = begins[0] if begins else len(frame)
        assert torch.equal(mask[:, :prompt], full[:, :prompt])
        if num_frames >= len(begins):
            assert torch.equal(mask, full)


def test_frame_window_leaves_a_gap_of_one_token():
    layout = SequenceLayout.frame_window([[Text(2)] + [Frame(1, 1)] * 4], num_frames=1, sink_frames=1)
    assert dense(layout, 0)[5].tolist() == [True, True, True, False, True, True]
    assert layout.intervals[5].tolist() == [3, 4, 5, 5, 6]
    assert layout.intervals[4].tolist() == [0, 0, 4, 4, 5]  # where sinks and window meet, plain history


@given(st.lists(text_then_frames, min_size=1, max_size=3))
def test_teacher_forcing(sequences):
    layout = SequenceLayout.teacher_forcing(sequences)
    source = SequenceLayout.from_segments(sequences)
    for s, segments in enumerate(sequences):
        frames = [x for x in segments if isinstance(x, Frame)]
        texts = [x for x in segments if isinstance(x, Text)]
        assert list(layout.sequences[s]) == texts + frames[:-1] + frames
        assert layout.clean_frames[s] == len(frames) - 1
        parts, original = layout.segments(s), source.segments(s)
        clean, noisy = parts[: len(segments) - 1], parts[len(segments) - 1 :]
        a, b = int(layout.cu_seqlens[s]), int(source.cu_seqlens[s])
        mask, full = dense(layout, s), dense(source, s)
        clean_end = clean[-1][2] if clean else 0
        # Text and clean copies are the source without its last frame, and see nothing else.
        assert torch.equal(mask[:clean_end, :clean_end], full[:clean_end, :clean_end])
        assert not mask[:clean_end, clean_end:].any()
        assert torch.equal(layout.positions[a : a + clean_end], source.positions[b : b + clean_end])
        for k, (_, begin, end) in enumerate(noisy):
            _, source_begin, source_end = original[len(texts) + k]
            # The noisy copy stands where the frame stood: same history, same positions, itself in place of the frame.
            expected = torch.zeros(len(mask), dtype=torch.bool)
            expected[:source_begin] = True
            expected[begin:end] = True
            assert (mask[begin:end] == expected).all()
            expected_positions = source.positions[b + source_begin : b + source_end]
            assert torch.equal(layout.positions[a + begin : a + end], expected_positions)


@given(any_layout)
def test_types_and_round_trip_through_intervals(layout):
    for field in ("cu_seqlens", "positions", "intervals", "index", "sequence_id", "frame_id"):
        assert getattr(layout, field).dtype == torch.int32 and getattr(layout, field).is_contiguous()
    lengths = layout.cu_seqlens.diff().tolist()
    again = SequenceLayout.from_intervals(lengths, layout.intervals, layout.positions, layout.hidden, layout.sequences)
    for field in FIELDS:
        assert torch.equal(getattr(again, field), getattr(layout, field)), field
    if not any(layout.clean_frames):
        assert again == layout and hash(again) == hash(layout)


@given(any_layout)
def test_visible_is_the_rule(layout):
    for s in range(layout.num_sequences):
        assert torch.equal(layout.visible(s), dense(layout, s))
    with pytest.raises(ValueError, match="sequence must be in"):
        layout.visible(layout.num_sequences)


def test_equality_is_by_content():
    make = SequenceLayout.from_segments
    layout = make([[Text(3), Frame(2, 2)]])
    assert layout == make([(Text(3), Frame(2, 2))]) and layout.key == make([[Text(3), Frame(2, 2)]]).key
    others = [
        make([[Text(3)], [Frame(2, 2)]]),
        make([[Text(3), Frame(2, 2)]], strides=(4, 4, 4)),
        make([[Text(2), Text(1), Frame(2, 2)]]),
        layout.with_hidden(torch.zeros(7, dtype=torch.bool)),
        SequenceLayout.from_intervals([7], layout.intervals * 0, layout.positions, segments=layout.sequences),
    ]
    assert len({layout, *others}) == 1 + len(others)
    assert layout != "layout"
    assert layout.with_hidden(torch.ones(7, dtype=torch.bool)).with_hidden(None) == layout
    assert len(layout.key) == 64


def test_immutable():
    layout = SequenceLayout.from_segments([[Text(3)]])
    with pytest.raises(AttributeError, match="immutable"):
        layout.positions = torch.zeros(3, 3)
    with pytest.raises(AttributeError, match="immutable"):
        del layout.positions
    with pytest.raises(TypeError, match="from_segments"):
        SequenceLayout()
    intervals = layout.intervals.clone()
    hidden = torch.zeros(3, dtype=torch.bool)
    copy = SequenceLayout.from_intervals([3], intervals, layout.positions, hidden)
    intervals.fill_(0)
    hidden.fill_(True)
    assert torch.equal(copy.intervals, layout.intervals) and not copy.hidden.any()


def test_to_the_same_device_is_itself():
    layout = SequenceLayout.from_segments([[Text(3)]])
    assert layout.to("cpu") is layout
    schedule = layout.schedule(2)
    moved = layout.to("meta")
    assert moved.positions.device.type == "meta" and moved.schedule(2) is schedule


ROW = [[0, 0, 1, 1, 2]] * 3


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Text(0), ValueError, r"Text.num_tokens must be in 1\.\."),
        (lambda: Text(2.0), TypeError, "Text.num_tokens must be an int, got float"),
        (lambda: Text(True), TypeError, "Text.num_tokens"),
        (lambda: Frame(0, 4), ValueError, "Frame.height"),
        (lambda: Frame(4, 4, header=-1), ValueError, "Frame.header"),
        (lambda: Frame(4, 4, newlines=1), TypeError, "Frame.newlines must be a bool"),
        (lambda: SequenceLayout.from_segments([]), ValueError, "sequences is empty"),
        (lambda: SequenceLayout.from_segments([[Text(1)], []]), ValueError, r"sequences\[1\] holds no segment"),
        (lambda: SequenceLayout.from_segments([Text(1)]), TypeError, r"sequences\[0\] must be a list"),
        (lambda: SequenceLayout.from_segments([[Text(1), 3]]), TypeError, r"sequences\[0\]\[1\] must be a Text or"),
        (lambda: SequenceLayout.from_segments([[Text(1)]], strides=(4, 8)), ValueError, "strides must be three"),
        (lambda: SequenceLayout.from_segments([[Text(1)]], strides=(4, 8, 0)), ValueError, r"strides\[2\]"),
        (lambda: SequenceLayout.from_segments([[Frame(9, 9)]], strides=(4, 8, 2**30)), ValueError, "past int32"),
        (lambda: SequenceLayout.frame_window([[Text(1)]], -1), ValueError, "num_frames"),
        (lambda: SequenceLayout.frame_window([[Text(1)]], 1, 0.5), TypeError, "sink_frames"),
        (lambda: SequenceLayout.teacher_forcing([[Text(1)]]), ValueError, r"sequences\[0\] holds no frame"),
        (lambda: SequenceLayout.teacher_forcing([[Frame(1, 1), Text(1)]]), ValueError, r"sequences\[0\]\[1\] is text"),
        (lambda: SequenceLayout.from_intervals(3, torch.tensor(ROW)), TypeError, "lengths must be a list"),
        (lambda: SequenceLayout.from_intervals([], torch.tensor(ROW)), ValueError, "lengths is empty"),
        (lambda: SequenceLayout.from_intervals([3, 0], torch.tensor(ROW)), ValueError, r"lengths\[1\]"),
        (
            lambda: SequenceLayout.from_intervals([4], torch.tensor(ROW)),
            ValueError,
            r"intervals must have shape \(4, 5\)",
        ),
        (
            lambda: SequenceLayout.from_intervals([3], torch.tensor(ROW).float()),
            TypeError,
            "intervals must be an integer",
        ),
        (lambda: SequenceLayout.from_intervals([3], ROW), TypeError, "intervals must be a tensor"),
        (
            lambda: SequenceLayout.from_intervals([1, 2], torch.tensor(ROW)),
            ValueError,
            r"span_end of sequence 0, token 0 is 2; allowed is 0\.\.1",
        ),
        (
            lambda: SequenceLayout.from_intervals([1, 2], torch.tensor([[0] * 5, [0] * 5, [-1, 0, 0, 0, 0]])),
            ValueError,
            "sink_end of sequence 1, token 1 is -1",
        ),
        (
            lambda: SequenceLayout.from_intervals([3], torch.tensor([[0] * 5, [0, 2, 1, 0, 0], [0] * 5])),
            ValueError,
            "token 1 has history_begin 2 > history_end 1",
        ),
        (
            lambda: SequenceLayout.from_intervals(
                [3], torch.tensor(ROW), positions=torch.zeros(3, 2, dtype=torch.int32)
            ),
            ValueError,
            "positions must have shape",
        ),
        (
            lambda: SequenceLayout.from_intervals([3], torch.tensor(ROW), positions=torch.full((3, 3), -1)),
            ValueError,
            "positions must be in 0",
        ),
        (
            lambda: SequenceLayout.from_intervals([3], torch.tensor(ROW), segments=[[Text(2)]]),
            ValueError,
            r"segments\[0\] adds up to 2 tokens, lengths\[0\] is 3",
        ),
        (
            lambda: SequenceLayout.from_intervals([3], torch.tensor(ROW), segments=[[Text(2)], [Text(1)]]),
            ValueError,
            "segments lists 2 sequences, lengths 1",
        ),
        (
            lambda: SequenceLayout.from_intervals([3], torch.tensor(ROW), hidden=torch.zeros(3)),
            TypeError,
            "hidden must be a bool tensor, got torch.float32",
        ),
        (
            lambda: SequenceLayout.from_segments([[Text(3)]]).with_hidden(torch.zeros(4, dtype=torch.bool)),
            ValueError,
            r"hidden must have shape \(3,\), got \(4,\)",
        ),
        (lambda: SequenceLayout.from_segments([[Text(3)]]).segments(1), ValueError, "sequence must be in 0..0, got 1"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()
