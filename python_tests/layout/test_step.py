"""Steps: the query side of a call on a cached layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.layout import Frame, SequenceLayout, Text

from .helpers import any_layout, tile_sizes

LAYOUT = SequenceLayout.from_segments([[Text(5), Frame(2, 3), Frame(2, 3)], [Text(2), Frame(2, 2)]])


@given(any_layout, tile_sizes, st.data())
def test_steps_cut_the_layout(layout, tile_tokens, data):
    listed = data.draw(st.lists(st.integers(0, layout.num_sequences - 1), min_size=1, unique=True))
    begins, ends = [], []
    for s in listed:
        edges = {0}
        for segment, begin, end in layout.segments(s):
            edges |= {end} if isinstance(segment, Frame) else set(range(begin, end + 1))
        begin, end = sorted(data.draw(st.lists(st.sampled_from(sorted(edges)), min_size=2, max_size=2, unique=True)))
        begins.append(begin)
        ends.append(end)
    step = layout.step(listed, begins, ends, tile_tokens)
    assert step.layout is layout
    assert (step.sequences, step.begin, step.end) == (tuple(listed), tuple(begins), tuple(ends))
    slots = torch.cat(
        [torch.arange(b, e) + int(layout.cu_seqlens[s]) for s, b, e in zip(listed, begins, ends, strict=True)]
    )
    assert torch.equal(step.slots_in_layout, slots) and step.slots_in_layout.dtype == torch.int64
    assert step.num_tokens == len(slots)
    assert torch.equal(step.positions, layout.positions[slots])
    assert torch.equal(step.intervals, layout.intervals[slots])
    assert step.cu_seqlens.diff().tolist() == [e - b for b, e in zip(begins, ends, strict=True)]
    assert step.cu_seqlens.dtype == step.tiles.dtype == torch.int32
    # The layout's own tiles, cut to the step, in order and without gaps.
    expected = []
    for i, (s, b, e) in enumerate(zip(listed, begins, ends, strict=True)):
        for _, tokens, first, sequence in layout.schedule(tile_tokens).tiles.tolist():
            low, high = max(first, b), min(first + tokens, e)
            if sequence == s and low < high:
                expected.append([int(step.cu_seqlens[i]) + low - b, high - low, low, i])
    assert step.tiles.tolist() == expected
    assert sum(row[1] for row in expected) == step.num_tokens


def test_ints_stand_for_all_listed_sequences():
    step = LAYOUT.step((1, 0), 0, 2)
    assert (step.begin, step.end, step.num_tokens) == ((0, 0), (2, 2), 4)
    assert LAYOUT.step(0, 5, 11).slots_in_layout.tolist() == list(range(5, 11))
    assert LAYOUT.step([0, 1], 0, torch.tensor([17, 6])).num_tokens == LAYOUT.num_tokens


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([0], 0, 7), ValueError, r"end 7 cuts frame 0 of sequence 0 \(Frame\(.*\), tokens 5..11\)"),
        (([0, 1], [12, 0], [17, 6]), ValueError, "begin 12 cuts frame 1 of sequence 0"),
        (([2], 0, 1), ValueError, "sequences must be in 0..1, got 2"),
        (([], 0, 1), ValueError, "sequences is empty"),
        (([1, 1], 0, 2), ValueError, "lists one twice"),
        (([0, 1], [0], [2, 2]), ValueError, "begin must be one int or one per listed sequence"),
        (([0], 5, 5), ValueError, "begin..end must be a range of tokens of sequence 0"),
        (([1], 0, 7), ValueError, r"sequence 1 \(0..6\), got 0..7"),
        (([0], -1, 5), ValueError, "begin must be in"),
        (([0], 0, 5.0), TypeError, "end must be an int"),
    ],
)
def test_bad_input(arguments, error, text):
    with pytest.raises(error, match=text):
        LAYOUT.step(*arguments)
