"""Clips as one picture, to be looked at."""

from __future__ import annotations

import numpy as np

__all__ = ["contact_sheet"]

_BORDER = 96


def contact_sheet(clips: np.ndarray, below: np.ndarray | None = None, *, every: int = 2) -> np.ndarray:
    """One row per clip, every second frame from left to right, grey lines between: uint8 [1, H, W, 3].

    Args:
        clips: uint8 [N, T, H, W, 1 or 3], N at least 1.
        below: clips of the same number and length; each is shown under its counterpart.
    """
    groups = [clips] if below is None else [clips, below]
    rows = []
    for i in range(len(clips)):
        for k, group in enumerate(groups):
            frames = np.broadcast_to(group[i, ::every], (*group[i, ::every].shape[:3], 3))
            bottom = 2 if k == len(groups) - 1 else 0
            frames = np.pad(frames, ((0, 0), (0, bottom), (0, 1), (0, 0)), constant_values=_BORDER)
            rows.append(np.concatenate(list(frames), axis=1))
    return np.concatenate(rows, axis=0)[None]
