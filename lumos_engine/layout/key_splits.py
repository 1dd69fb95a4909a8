"""Key splits: the keys of a query tile cut into parts that several thread blocks share, where a segment has few query tiles.

A key belongs to split ``index // split_tokens``: its index in its sequence, and what the query's own segment gives for
``split_tokens``. So the bits of a query depend neither on what else is computed nor on which other keys a cache holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

MIN_SPLIT_TILES = 16
_INT32_MAX = 2**31 - 1


def split_tokens(num_tiles: np.ndarray, tile_tokens: int) -> np.ndarray:
    """Tokens of a key split for queries of segments with ``num_tiles`` tiles; int64, of the same shape.

    The square makes up for the tiles: n of them against f frames like theirs are n/2 blocks of two tiles times n f / (n n / 2)
    splits, f blocks whatever n is. Segments of many tiles, which fill a GPU as they are, have one split.
    """
    tiles = np.maximum(num_tiles.astype(np.int64) ** 2 // 2, MIN_SPLIT_TILES)
    return np.minimum(tiles * tile_tokens, _INT32_MAX)


@dataclass(frozen=True)
class KeySplits:
    """Tensors int32, contiguous, on the CPU.

    tiles [I, 4]: the query tiles as in the schedule, one that is split once for each split. Tiles of 0 tokens fill up: the tiles
    at 2 i and 2 i + 1, which a thread block takes together, look at the same split.
    keys [I, 2]: first and end of the key tiles of each.
    row_offsets [I + 1], row_runs [R, 3]: as in the schedule, within ``keys``.
    merges [M, 3]: of each tile that is split, its first row in ``tiles``, the number of its splits, the distance of their rows.
    num_partials: so many rows of ``tiles``, the first ones, belong to splits.
    """

    tiles: torch.Tensor
    keys: torch.Tensor
    row_offsets: torch.Tensor
    row_runs: torch.Tensor
    merges: torch.Tensor
    num_partials: int


def cut_keys(
    query_tiles: np.ndarray, key_tiles: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, runs: np.ndarray
) -> KeySplits | None:
    """None where every tile has one split at most.

    query_tiles [T, 4], key_tiles [K, 4]: as in the schedule. lengths [T]: ``split_tokens`` of each query tile.
    offsets [T + 1], runs [R, 3]: the key tiles of each query tile; more of them than it meets cost time and change no bit.
    """
    some = offsets[:-1] < offsets[1:]
    if not some.any():
        return None
    first, end = np.zeros((2, len(query_tiles)), dtype=np.int64)
    first[some], end[some] = runs[offsets[:-1][some], 0], runs[offsets[1:][some] - 1, 1]
    split_of = key_tiles[:, 2]  # after division by the length
    is_split = some & (split_of[first] // lengths < split_of[end - 1] // lengths)
    if not is_split.any():
        return None

    tiles, keys, merges = [], [], []
    num_partials = 0
    alike = np.stack((query_tiles[:, 3], lengths, first, end), axis=1)  # of the tiles of a frame
    edges = np.flatnonzero((alike[1:] != alike[:-1]).any(axis=1)) + 1
    for begin, stop in zip([0, *edges], [*edges, len(alike)], strict=True):
        if not is_split[begin]:
            continue
        low = int(first[begin])
        splits = split_of[low : end[begin]] // lengths[begin]
        met = np.zeros(len(splits), dtype=bool)
        for run in runs[offsets[begin] : offsets[stop], :2] - low:
            met[slice(*run)] = True
        cuts = [low + np.searchsorted(splits, (split, split + 1)) for split in np.unique(splits[met])]
        count = stop - begin
        distance = count + count % 2
        group = np.full(distance, -1)
        group[:count] = np.arange(begin, stop)
        tiles += [group] * len(cuts)
        keys += [np.tile(cut, (distance, 1)) for cut in cuts]
        merges += [(num_partials + i, len(cuts), distance) for i in range(count)]
        num_partials += int(distance) * len(cuts)
    whole = np.flatnonzero(~is_split)
    tile = np.concatenate([*tiles, whole])
    ranges = np.concatenate([*keys, np.stack((first[whole], end[whole]), axis=1)])
    rows = np.where(tile[:, None] < 0, 0, query_tiles[tile])
    arrays = (rows, ranges, *_clipped(tile, ranges, offsets, runs), np.array(merges))
    of_tiles, of_keys, row_offsets, row_runs, of_merges = (torch.from_numpy(x.astype(np.int32)) for x in arrays)
    return KeySplits(of_tiles, of_keys, row_offsets, row_runs, of_merges, num_partials)


def _clipped(
    tile: np.ndarray, ranges: np.ndarray, offsets: np.ndarray, runs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and runs of ``tile`` [I] (-1: none), each within its range [I, 2] of key tiles."""
    counts = np.where(tile < 0, 0, np.diff(offsets)[tile])
    item = np.repeat(np.arange(len(tile)), counts)
    place = np.arange(len(item)) + np.repeat(offsets[tile] - (np.cumsum(counts) - counts), counts)
    clipped = runs[place]
    clipped[:, 0] = np.maximum(clipped[:, 0], ranges[item, 0])
    clipped[:, 1] = np.minimum(clipped[:, 1], ranges[item, 1])
    kept = clipped[:, 0] < clipped[:, 1]
    return np.searchsorted(item[kept], np.arange(len(tile) + 1)), clipped[kept]
