"""from_tokens: ids in the original's format to segments, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.layout import Frame, SequenceLayout, Text, Vocabulary

from .helpers import SMALL


def frame_ids(height: int, width: int, vocabulary: Vocabulary = SMALL) -> list[int]:
    ids = vocabulary.frame_header(height, width)
    for row in range(height):
        ids += [vocabulary.visual((7 * row + column) % 128) for column in range(width)] + [vocabulary.newline]
    return [*ids, vocabulary.image_end]


def frame(height: int, width: int) -> Frame:
    return Frame(height, width, newlines=True, header=3, footer=1)


sizes = st.tuples(st.sampled_from([4, 8]), st.sampled_from([4, 8, 12]))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(sizes, max_size=3), st.booleans(), st.booleans()), min_size=1),
    st.integers(0, 2**16),
)
def test_round_trip(videos, seed):
    """Segments -> ids -> the same segments; masked content changes nothing."""
    ids: list[int] = []
    expected, lengths = [], []
    for text, frame_sizes, is_video, closed in videos:
        row = [SMALL.bos, *range(1, 1 + text), SMALL.sep]
        if is_video:
            row += SMALL.video_header(2, 12)
        segments = [Text(len(row))] + [frame(*size) for size in frame_sizes]
        for size in frame_sizes:
            row += frame_ids(*size)
        if is_video and closed:
            row += [SMALL.video_end, SMALL.sep]
            segments += [Text(2)] if frame_sizes else []
            if not frame_sizes:
                segments = [Text(len(row))]
        ids += row
        lengths.append(len(row))
        expected.append(segments)
    tokens = torch.tensor(ids)
    layout = SequenceLayout.from_tokens(tokens, SMALL, lengths)
    assert layout == SequenceLayout.from_segments(expected, strides=SMALL.strides)
    hit = layout.content & (torch.rand(len(ids), generator=torch.Generator().manual_seed(seed)) < 0.7)
    assert SequenceLayout.from_tokens(torch.where(hit, SMALL.mask, tokens), SMALL, lengths) == layout
    assert (SMALL.is_visual(tokens) | (tokens == SMALL.newline))[layout.content].all()
    assert (tokens == SMALL.newline).equal(layout.newline)


def test_only_frames_inside_a_closed_video_count():
    inside = SMALL.video_header(1, 1) + frame_ids(4, 4) + [SMALL.video_end]
    ids = frame_ids(4, 4) + inside + frame_ids(4, 4)[:-1]
    layout = SequenceLayout.from_tokens(torch.tensor(ids), SMALL)
    n = frame(4, 4).num_tokens
    assert layout.sequences == ((Text(n + 3), frame(4, 4), Text(1 + n - 1)),)
    second_open = torch.tensor(inside + SMALL.video_header(1, 1) + FRAME)
    assert SequenceLayout.from_tokens(second_open, SMALL).sequences == ((Text(3), frame(4, 4), Text(1 + 3 + n)),)
    still_open = torch.tensor(inside[:-1] + frame_ids(4, 4))
    assert SequenceLayout.from_tokens(still_open, SMALL).sequences == ((Text(3), frame(4, 4), frame(4, 4)),)


FRAME = frame_ids(4, 4)  # image_start, 2 sizes, 4 rows of 4 + newline, image_end: 24 tokens


def edited(offset: int, token: int) -> list[int]:
    return [1, 2, *FRAME[:offset], token, *FRAME[offset + 1 :]]


@pytest.mark.parametrize("kept", range(1, len(FRAME)))
def test_a_frame_cut_anywhere_is_refused(kept):
    ids = torch.tensor([1, 2, 3, 4, 5, *FRAME[:kept]])
    with pytest.raises(ValueError, match=r"tokens: sequence 1, offset 2: .*cut short"):
        SequenceLayout.from_tokens(ids, SMALL, [3, 2 + kept])


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (edited(1, 50), "sequence 0, offset 3: id 50 is no size token; the frame's height"),
        (edited(2, 110), "sequence 0, offset 4: id 110 is no size token; the frame's width"),
        (edited(2, 300), "sequence 0, offset 4: id 300 is no size token"),
        (edited(2, 112), "sequence 0, offset 9: id 103 where a visual code is expected .*a wrong row length"),
        (edited(7, 200), "sequence 0, offset 9: id 200 where a newline is expected"),
        (edited(5, 3), "sequence 0, offset 7: id 3 where a visual code is expected"),
        (edited(23, 5), "sequence 0, offset 25: id 5 where image_end"),
        ([*FRAME[:20], *FRAME], "offset 20: id 101 where a visual code is expected"),
    ],
)
def test_malformed_frames(ids, text):
    if ids[4] == 112:  # a frame of double width, so that the rows do not fit
        ids = ids + [200] * 40
    with pytest.raises(ValueError, match=f"tokens: .*{text}"):
        SequenceLayout.from_tokens(torch.tensor(ids), SMALL)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1, 2], SMALL), TypeError, "tokens must be a tensor"),
        ((torch.zeros(3), SMALL), TypeError, "tokens must be an integer tensor"),
        ((torch.zeros(1, 3, dtype=torch.long), SMALL), ValueError, r"tokens must have shape \[tokens\]"),
        ((torch.zeros(0, dtype=torch.long), SMALL), ValueError, "at least one token"),
        ((torch.zeros(3, dtype=torch.long), {}), TypeError, "vocabulary must be a Vocabulary"),
        ((torch.zeros(3, dtype=torch.long), SMALL, [2]), ValueError, "lengths adds up to 2, tokens holds 3"),
        ((torch.zeros(3, dtype=torch.long), SMALL, [3, 0]), ValueError, r"lengths\[1\]"),
    ],
)
def test_bad_input(arguments, error, text):
    with pytest.raises(error, match=text):
        SequenceLayout.from_tokens(*arguments)
