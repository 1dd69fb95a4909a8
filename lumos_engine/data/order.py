"""The order in which an epoch visits a data set: a function of (seed, epoch), so that training resumes by position
alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..io.image import MediaError
from .clip import Clip, ClipDataset
from .hashing import shuffled

__all__ = ["epoch_order", "iterate_epoch"]


def epoch_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num_items), int64 [num_items]. Seed and epoch: 0 <= value < 2**63."""
    return shuffled(seed, num_items, stream=epoch)


def iterate_epoch(dataset: ClipDataset, seed: int, epoch: int, begin: int = 0) -> Iterator[tuple[int, Clip]]:
    """(position, clip) from position ``begin`` of the epoch on; files that cannot be decoded are left out (the data
    set logs them).

    Raises:
        MediaError: not one clip of a whole epoch could be decoded.
    """
    decoded, failure = 0, None
    for position, index in enumerate(epoch_order(len(dataset), seed, epoch)[begin:], start=begin):
        try:
            clip = dataset.sample(int(index))
        except MediaError as error:
            failure = error
            continue
        decoded += 1
        yield position, clip
    if begin == 0 and decoded == 0 and failure is not None:
        raise MediaError(f"not one of {len(dataset)} clips could be decoded; the last: {failure}") from failure
