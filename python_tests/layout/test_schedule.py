"""The schedule against the dense mask, pair of tiles by pair of tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from lumos_engine.layout import Frame, Schedule, SequenceLayout, Text, schedule

from .helpers import any_layout, dense, random_intervals, tile_sizes


def states_of(runs: torch.Tensor, offsets: torch.Tensor, num_tiles: int) -> torch.Tensor:
    """int [T, T]: 0 absent, 1 partial, 2 full; checks that runs are sorted, disjoint, maximal and in range."""
    states = torch.zeros(num_tiles, num_tiles, dtype=torch.int64)
    assert offsets[0] == 0 and offsets[-1] == len(runs)
    for i in range(num_tiles):
        last_end, last_full = -1, -1
        for first, end, full in runs[offsets[i] : offsets[i + 1]].tolist():
            assert 0 <= first < end <= num_tiles and full in (0, 1)
            assert first > last_end or (first == last_end and full != last_full)
            states[i, first:end] = 1 + full
            last_end, last_full = end, full
    return states


def expected_states(layout: SequenceLayout, tiles: list[list[int]]) -> torch.Tensor:
    masks = [dense(layout, s) for s in range(layout.num_sequences)]
    states = torch.zeros(len(tiles), len(tiles), dtype=torch.int64)
    for i, (_, queries, query, sequence) in enumerate(tiles):
        for j, (_, keys, key, other) in enumerate(tiles):
            if sequence == other:
                pairs = masks[sequence][query : query + queries, key : key + keys]
                states[i, j] = 2 if pairs.all() else int(pairs.any())
    return states


def check(layout: SequenceLayout, tile_tokens: int) -> None:
    result: Schedule = layout.schedule(tile_tokens)
    for tensor in (result.tiles, result.row_offsets, result.row_runs, result.col_offsets, result.col_runs):
        assert tensor.dtype == torch.int32 and tensor.is_contiguous() and tensor.device.type == "cpu"
    tiles = result.tiles.tolist()
    expected = expected_states(layout, tiles)
    assert (states_of(result.row_runs, result.row_offsets, len(tiles)) == expected).all()
    assert (states_of(result.col_runs, result.col_offsets, len(tiles)) == expected.T).all()


@given(any_layout, tile_sizes)
def test_states_are_exact(layout, tile_tokens):
    check(layout, tile_tokens)


@pytest.mark.parametrize("seed", range(120))
def test_states_are_exact_for_any_intervals(seed):
    check(random_intervals(seed), 1 + seed % 7)


@given(any_layout, tile_sizes)
def test_tiles_restart_at_each_segment(layout, tile_tokens):
    expected = []
    for sequence in range(layout.num_sequences):
        slot = int(layout.cu_seqlens[sequence])
        for _, begin, end in layout.segments(sequence):
            for first in range(begin, end, tile_tokens):
                expected.append([slot + first, min(tile_tokens, end - first), first, sequence])
    assert layout.schedule(tile_tokens).tiles.tolist() == expected


@given(any_layout, tile_sizes)
def test_chunks_of_rows_change_nothing(layout, tile_tokens):
    whole = layout.schedule(tile_tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_MAX_COUNT_CELLS", 7)
        chunked = layout.with_hidden(layout.hidden).schedule(tile_tokens)
    assert chunked is not whole
    assert torch.equal(chunked.row_runs, whole.row_runs) and torch.equal(chunked.row_offsets, whole.row_offsets)
    assert torch.equal(chunked.col_runs, whole.col_runs) and torch.equal(chunked.col_offsets, whole.col_offsets)


def test_hidden_keys_make_history_partial_or_invisible_and_leave_the_own_frame_full():
    layout = SequenceLayout.from_segments([[Text(4), Frame(2, 2), Frame(2, 2)]])
    hidden = torch.tensor([False] * 4 + [True, False, False, False] + [True] * 4)
    runs = layout.with_hidden(hidden).schedule(4)
    assert runs.row_runs[runs.row_offsets[2] :].tolist() == [[0, 1, 1], [1, 2, 0], [2, 3, 1]]
    hidden[4:8] = True
    runs = layout.with_hidden(hidden).schedule(4)
    assert runs.row_runs[runs.row_offsets[2] :].tolist() == [[0, 1, 1], [2, 3, 1]]


def test_runs_of_a_video_are_few():
    layout = SequenceLayout.from_segments([[Text(64)] + [Frame(32, 32)] * 7])
    runs = layout.schedule(64)
    assert len(runs.tiles) == 1 + 7 * 16
    assert runs.row_runs[0].tolist() == [0, 1, 0]  # causal text is the only partial tile
    assert (runs.row_runs[1:, 2] == 1).all() and len(runs.row_runs) == len(runs.tiles)


def test_schedule_is_cached_per_tile_size():
    layout = SequenceLayout.from_segments([[Text(4)]])
    assert layout.schedule(2) is layout.schedule(2)
    assert layout.schedule(2) is not layout.schedule(3)
    assert layout.with_hidden(torch.ones(4, dtype=torch.bool)).schedule(2) is not layout.schedule(2)


@pytest.mark.parametrize("tile_tokens", [0, -1])
def test_bad_tile(tile_tokens):
    with pytest.raises(ValueError, match="tile_tokens"):
        SequenceLayout.from_segments([[Text(4)]]).schedule(tile_tokens)
