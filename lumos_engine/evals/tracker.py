"""From frames to objects: bright blobs in each frame, linked over time, and the motion that the track of a blob
shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ..data.motion import MOTIONS, Motion

__all__ = ["CROP_SIZE", "Blob", "Track", "find_blobs", "read_motion", "track_objects"]

CROP_SIZE = 16
"""Side of the window around a blob that the classifier sees, px."""
_INK = 0.25  # brightness from which a pixel belongs to a blob
_MIN_MASS = 6.0  # summed brightness below which a blob is a speck; a thin "1" has about 25
_MAX_STEP = 6.0  # px between two frames beyond which it is another object; the fastest digit moves 1.4


@dataclass(frozen=True)
class Blob:
    """Ink that hangs together.

    Attributes:
        centre: (y, x), mean of the pixel coordinates weighted by brightness, px.
        mass: summed brightness, in white pixels.
        crop: float32 [16, 16] in [0, 1], the blob alone, centred by its bounding box.
    """

    centre: tuple[float, float]
    mass: float
    crop: np.ndarray


@dataclass(frozen=True)
class Track:
    """One object over time: its blob in each frame, None where it is missing."""

    blobs: tuple[Blob | None, ...]

    @property
    def centres(self) -> np.ndarray:
        """float64 [T, 2], NaN where missing."""
        return np.array([blob.centre if blob else (np.nan, np.nan) for blob in self.blobs])


def find_blobs(frame: np.ndarray) -> list[Blob]:
    """The blobs of a grey frame (float [H, W] in [0, 1]), heaviest first.

    Strokes at most 2 px apart are one blob; the world keeps digits 3 px apart.
    """
    from scipy import ndimage

    ink = frame >= _INK
    labels, count = ndimage.label(ndimage.binary_dilation(ink, np.ones((3, 3))))
    blobs = []
    for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
        alone = np.where(labels[box] == label, frame[box], 0.0)
        mass = float(alone.sum())
        if mass < _MIN_MASS:
            continue
        y, x = np.mgrid[box]
        centre = (float((alone * y).sum()) / mass, float((alone * x).sum()) / mass)
        blobs.append(Blob(centre, mass, _centred(alone)))
    return sorted(blobs, key=lambda blob: -blob.mass)


def _centred(alone: np.ndarray) -> np.ndarray:
    """The middle of ``alone`` by the bounding box of its ink, in a window of CROP_SIZE (cut where it is larger)."""
    rows, columns = np.nonzero(alone.max(axis=1) >= _INK)[0], np.nonzero(alone.max(axis=0) >= _INK)[0]
    crop = np.zeros((CROP_SIZE, CROP_SIZE), dtype=np.float32)
    top, left = (
        (CROP_SIZE - 1 - first - last) // 2 for first, last in ((rows[0], rows[-1]), (columns[0], columns[-1]))
    )
    y, x = max(top, 0), max(left, 0)
    part = alone[y - top : CROP_SIZE - top, x - left : CROP_SIZE - left]
    crop[y : y + part.shape[0], x : x + part.shape[1]] = part
    return crop


def track_objects(frames_blobs: list[list[Blob]], num_objects: int) -> list[Track]:
    """Link the heaviest ``num_objects`` blobs of each frame so that they move least.

    A blob farther than 6 px from where an object was last seen is not that object, unless the object has been missing
    for two frames.

    Args:
        frames_blobs: result of :func:`find_blobs` for each frame.
        num_objects: at most 4 (all assignments are tried).

    Raises:
        ValueError: ``num_objects`` outside 1..4.
    """
    if not 1 <= num_objects <= 4:
        raise ValueError(f"num_objects must be within 1..4, not {num_objects}")
    slots: list[list[Blob | None]] = [[] for _ in range(num_objects)]
    last: list[Blob | None] = [None] * num_objects
    for blobs in frames_blobs:
        found: list[Blob | None] = list(blobs[:num_objects])
        found += [None] * (num_objects - len(found))
        orders = permutations(range(num_objects))
        best = min(orders, key=lambda order: sum(_distance(last[k], found[i]) for k, i in enumerate(order)))
        for k, i in enumerate(best):
            jumped = _distance(last[k], found[i]) > _MAX_STEP and any(slots[k][-2:])
            slots[k].append(None if jumped else found[i])
            last[k] = slots[k][-1] or last[k]
    return [Track(tuple(slot)) for slot in slots]


def _distance(a: Blob | None, b: Blob | None) -> float:
    return 0.0 if a is None or b is None else float(np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]))


def read_motion(centres: np.ndarray) -> Motion | None:
    """The motion whose velocity is nearest to the slope of a track (least squares); None when seen in fewer than half
    of the frames.

    Args:
        centres: float [T, 2], NaN where missing.
    """
    time = np.flatnonzero(np.isfinite(centres).all(axis=1))
    if len(centres) < 2 or len(time) < max(2, len(centres) / 2):
        return None
    centred = time - time.mean()
    velocity = centred @ centres[time] / (centred @ centred)
    return min(MOTIONS, key=lambda motion: float(np.hypot(motion.dy - velocity[0], motion.dx - velocity[1])))
