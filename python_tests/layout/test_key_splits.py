"""Key splits: every pair of tiles in one of them, by the key's index and the query's own segment alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.layout import Frame, SequenceLayout, Text, key_splits
from lumos_engine.ops import key_splits as of_call
from lumos_engine.testing.strategies_cache import cacheable_layouts, in_pages, steps

from .helpers import any_layout, random_intervals


@pytest.fixture(scope="module", autouse=True)
def short_splits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_splits, "MIN_SPLIT_TILES", 1)
        yield


def splits_of(layout: SequenceLayout, tile_tokens: int = 64) -> key_splits.KeySplits | None:
    s = layout.schedule(tile_tokens)
    return of_call.of_schedule(s.split_tokens, s.tiles, s.row_offsets, s.row_runs)


def pairs(tiles: torch.Tensor, offsets: torch.Tensor, runs: torch.Tensor) -> list[tuple[tuple[int, ...], int, int]]:
    """(query tile, key tile, full) of each, sorted."""
    found = []
    for i, tile in enumerate(tiles.tolist()):
        for first, end, full in runs[offsets[i] : offsets[i + 1]].tolist():
            found += [(tuple(tile), key, full) for key in range(first, end)]
    return sorted(found)


def check(layout: SequenceLayout, tile_tokens: int) -> None:
    schedule, splits = layout.schedule(tile_tokens), splits_of(layout, tile_tokens)
    index = schedule.tiles[:, 2].numpy()
    lengths = dict(zip(map(tuple, schedule.tiles.tolist()), schedule.split_tokens.tolist(), strict=True))
    whole = pairs(schedule.tiles, schedule.row_offsets, schedule.row_runs)
    if splits is None:
        met: dict[tuple[int, ...], set[int]] = {}
        for tile, key, _ in whole:
            met.setdefault(tile, set()).add(int(index[key]) // lengths[tile])
        assert all(len(found) == 1 for found in met.values())
        return
    for tensor in (splits.tiles, splits.keys, splits.row_offsets, splits.row_runs, splits.merges):
        assert tensor.dtype == torch.int32 and tensor.is_contiguous()
    assert pairs(splits.tiles, splits.row_offsets, splits.row_runs) == whole
    tiles, keys = splits.tiles.tolist(), splits.keys.tolist()
    for tile, (first, end), begin, stop in zip(
        tiles, keys, splits.row_offsets[:-1].tolist(), splits.row_offsets[1:].tolist(), strict=True
    ):
        runs = splits.row_runs[begin:stop]
        assert ((first <= runs[:, 0]) & (runs[:, 0] < runs[:, 1]) & (runs[:, 1] <= end)).all()
        assert len(np.unique(index[first:end] // lengths[tuple(tile)] if tile[1] else [])) <= 1
    check_merges(splits, index, lengths)


def check_merges(splits: key_splits.KeySplits, index: np.ndarray, lengths: dict[tuple[int, ...], int]) -> None:
    tiles, keys = splits.tiles.tolist(), splits.keys.tolist()
    assert splits.num_partials % 2 == 0
    assert keys[0 : splits.num_partials : 2] == keys[1 : splits.num_partials : 2]
    merged = []
    for first, count, distance in splits.merges.tolist():
        rows = list(range(first, first + count * distance, distance))
        assert count > 1 and all(tiles[row] == tiles[first] for row in rows)
        numbers = [int(index[keys[row][0]]) // lengths[tuple(tiles[first])] for row in rows]
        assert numbers == sorted(set(numbers))
        merged += rows
    assert sorted(merged) == [i for i in range(splits.num_partials) if tiles[i][1]]
    assert len({tuple(tiles[i]) for i in range(splits.num_partials, len(tiles))}) == len(tiles) - splits.num_partials


@given(any_layout, st.integers(1, 5))
def test_every_pair_is_in_the_split_of_its_key(layout, tile_tokens):
    check(layout, tile_tokens)


@pytest.mark.parametrize("seed", range(40))
def test_any_intervals(seed):
    check(random_intervals(seed), 1 + seed % 7)


@given(cacheable_layouts(), st.data())
def test_against_a_cache_they_are_those_of_the_layout_or_more(layout, data):
    step = data.draw(steps(layout))
    k = torch.zeros(layout.num_tokens, 1, 1)
    keys = in_pages(k, k, layout, 48, step, 0).key_tiles.tiles
    of_layout = dict(
        zip(map(tuple, layout.schedule().tiles[:, 2:].tolist()), layout.schedule().split_tokens, strict=True)
    )
    for (_, _, first, place), length in zip(step.tiles.tolist(), step.split_tokens, strict=True):
        tile = max(begin for begin, sequence in of_layout if sequence == step.sequences[place] and begin <= first)
        assert length == of_layout[tile, step.sequences[place]]
    splits = of_call.of_pages(step.split_tokens, step.tiles, keys)
    index, places = keys[:, 2].numpy(), keys[:, 3].numpy()
    lengths = dict(zip(map(tuple, step.tiles.tolist()), step.split_tokens.tolist(), strict=True))
    numbers = {tile: set((index[places == tile[3]] // length).tolist()) for tile, length in lengths.items()}
    if splits is None:
        assert all(len(found) == 1 for found in numbers.values())
        return
    check_merges(splits, index, lengths)
    for tile, (first, end) in zip(splits.tiles.tolist(), splits.keys.tolist(), strict=True):
        if tile[1]:
            found = set((index[first:end] // lengths[tuple(tile)]).tolist())
            assert len(found) == 1 and found <= numbers[tuple(tile)] and (places[first:end] == tile[3]).all()
            numbers[tuple(tile)] -= found
    assert not any(numbers.values())


def test_the_rule(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(key_splits, "MIN_SPLIT_TILES", 16)
    tiles = np.array([1, 4, 5, 6, 8, 16, 29, 2**25])
    assert key_splits.split_tokens(tiles, 64).tolist() == [1024, 1024, 1024, 1152, 2048, 8192, 26880, 2**31 - 1]
    for frame, frames, parts in (
        (Frame(16, 16), 12, 4),
        (Frame(32, 32), 12, 2),
        (Frame(32, 32), 7, 1),
        (Frame(32, 56, newlines=True, header=3, footer=1), 7, 1),
    ):
        splits = splits_of(
            SequenceLayout.from_segments([[Text(64), *[frame] * (frames + 1 if frames > 7 else frames)]])
        )
        assert (int(splits.merges[-1, 1]) if splits else 1) == parts


def test_nothing_is_cut_where_a_tile_has_one_split():
    layout = SequenceLayout.from_segments([[Text(9)], [Text(3)]])
    assert splits_of(layout) is None
    nobody = SequenceLayout.from_intervals([3], torch.zeros(3, 5, dtype=torch.int32))
    assert splits_of(nobody) is None


def test_made_once():
    layout = SequenceLayout.from_segments([[Text(5), *[Frame(8, 8)] * 3]])
    assert splits_of(layout) is splits_of(layout) is not None
