"""Batches of training clips for the visual tokenizer, and the clips held back from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data import Clip, FolderDataset, MovingDigits, epoch_order, iterate_epoch, open_dataset

__all__ = ["ClipSource", "open_clips"]

_HELD_BACK_EVERY = 8  # of a folder: one file in eight
_CACHE_BYTES = 1 << 30  # decoded clips kept in memory


class ClipSource(Protocol):
    """Where training takes its clips."""

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Endless batches, float ``[batch_size, T, C, H, W]`` in [-1, 1]."""
        ...

    def held_back(self, count: int) -> Tensor:
        """Up to ``count`` clips that no batch holds, uint8 ``[N, T, H, W, C]``."""
        ...


def open_clips(
    data: str, *, num_frames: int, height: int, width: int, fps: float, channels: int, temporal_stride: int, seed: int
) -> ClipSource:
    """The source that ``data`` names, "moving-digits" or a folder.

    Raises:
        ValueError: it does not exist, holds nothing that fits, or has other channels than ``channels``.
    """
    if data.replace("_", "-") == "moving-digits":
        _check_channels(data, MovingDigits.channels, channels)
        return _Digits(num_frames, height, width, seed)
    folder = open_dataset(
        data, num_frames=num_frames, fps=fps, size=(height, width), captions="optional", temporal_stride=temporal_stride
    )
    assert isinstance(folder, FolderDataset)
    _check_channels(data, folder.channels, channels)
    if len(folder) < 2:
        raise ValueError(
            f"{data} must hold at least 2 usable files, one to train on and one to hold back, got {len(folder)}"
        )
    return _Footage(folder, seed)


class _Digits:
    """Digit images of training and held-back clips are disjoint."""

    def __init__(self, num_frames: int, height: int, width: int, seed: int) -> None:
        self._train, self._test = (
            MovingDigits(split, seed, num_frames=num_frames, height=height, width=width) for split in ("train", "test")
        )

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        begin = 0
        while True:
            indices = np.arange(begin, begin + batch_size) % len(self._train)
            yield _to_float(self._train.batch(indices).frames)
            begin += batch_size

    def held_back(self, count: int) -> Tensor:
        return torch.from_numpy(self._test.batch(range(min(count, len(self._test)))).frames)


class _Footage:
    """One clip of each file, mirrored at random; an image stands still for the length of a clip."""

    def __init__(self, folder: FolderDataset, seed: int) -> None:
        order = epoch_order(len(folder), seed, 0).tolist()
        self._test = _Subset(folder, sorted(order[::_HELD_BACK_EVERY]))
        self._train = _Subset(folder, sorted(set(order) - set(order[::_HELD_BACK_EVERY])))
        self._num_frames, self._seed = folder.num_frames, seed

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        generator = np.random.default_rng(self._seed)
        batch: list[np.ndarray] = []
        epoch = 0
        while True:
            for _, clip in iterate_epoch(self._train, self._seed, epoch):
                frames = self._whole(clip)
                batch.append(frames[:, :, ::-1] if generator.random() < 0.5 else frames)
                if len(batch) == batch_size:
                    yield _to_float(np.stack(batch))
                    batch.clear()
            epoch += 1

    def held_back(self, count: int) -> Tensor:
        clips = islice(iterate_epoch(self._test, self._seed, 0), count)
        return torch.from_numpy(np.stack([self._whole(clip) for _, clip in clips]))

    def _whole(self, clip: Clip) -> np.ndarray:
        return np.repeat(clip.frames, self._num_frames, axis=0) if len(clip.frames) == 1 else clip.frames


class _Subset:
    """Some clips of a data set; decoded ones are kept while there is room."""

    def __init__(self, dataset: FolderDataset, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, indices
        self._kept: dict[int, Clip] = {}
        self._room = _CACHE_BYTES

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, index: int) -> Clip:
        if index in self._kept:
            return self._kept[index]
        clip = self._dataset.sample(self._indices[index])
        if clip.frames.nbytes <= self._room:
            self._kept[index] = clip
            self._room -= clip.frames.nbytes
        return clip


def _check_channels(data: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"model.channels must be {found} for {data}, got {wanted}")


def _to_float(frames: np.ndarray) -> Tensor:
    """Float ``[B, T, C, H, W]`` in [-1, 1] of uint8 ``[B, T, H, W, C]``."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 2).float() / 127.5 - 1
