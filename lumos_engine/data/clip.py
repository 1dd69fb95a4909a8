"""A clip with its caption, and what every data set of clips offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

__all__ = ["Clip", "ClipDataset"]


@dataclass(frozen=True)
class Clip:
    """One video, or an image as a video of one frame.

    Attributes:
        frames: uint8 [T, H, W, C], C is 1 (grey) or 3 (RGB).
        caption: what is shown; "" where nothing is known.
        fps: frames per second; 1.0 for an image.
        objects: ground truth of a synthetic data set (:class:`~lumos_engine.data.moving_digits.DigitObject`), else
            empty.
    """

    frames: np.ndarray
    caption: str
    fps: float
    objects: tuple[Any, ...] = field(default=())


class ClipDataset(Protocol):
    """Clips by index. ``sample(i)`` depends on the options of the data set and ``i`` alone, never on earlier calls."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Clip: ...
