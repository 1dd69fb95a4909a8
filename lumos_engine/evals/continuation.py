"""How well a clip is continued from its first frame: PSNR against the true future, beside that of repeating the
first frame.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["future_mse", "psnr_db", "summarize_continuation"]

_MIN_MSE = 1e-6  # 60 dB: what counts as equal, so that one perfect clip does not make a mean infinite


def future_mse(clips: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared error over the frames after the first, brightness in [0, 1]: float64 [N].

    Args:
        clips, truth: uint8 [N, T, H, W, C], C 1 or 3 (channels are averaged), T at least 2.

    Raises:
        ValueError: shapes apart from the channels differ, or T is 1.
    """
    if clips.shape[:4] != truth.shape[:4] or clips.shape[1] < 2:
        raise ValueError(
            f"clips {list(clips.shape)} and truth {list(truth.shape)} must agree and hold at least 2 frames"
        )
    grey, true_grey = (frames[:, 1:].mean(axis=-1) / 255 for frames in (clips, truth))
    return ((grey - true_grey) ** 2).mean(axis=(1, 2, 3))


def psnr_db(mse: np.ndarray | float) -> np.ndarray:
    """Peak signal-to-noise ratio for a peak of 1, at most 60 dB."""
    return -10 * np.log10(np.maximum(mse, _MIN_MSE))


def summarize_continuation(generated: np.ndarray, reconstructed: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """PSNR in dB, means over clips, of generated clips, of repeating the first true frame and of the tokenizer's
    reconstruction (the ceiling).

    ``gain_db`` is generated minus repeated, with its 95 % interval (normal, over clips; None for one clip);
    ``gain_pooled_db`` the same from the errors of all clips taken together.
    """
    repeated = np.broadcast_to(truth[:, :1], truth.shape)
    mse = {
        name: future_mse(clips, truth)
        for name, clips in (("generated", generated), ("repeated", repeated), ("reconstructed", reconstructed))
    }
    gain = psnr_db(mse["generated"]) - psnr_db(mse["repeated"])
    spread = 1.96 * float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else None
    mean = float(gain.mean())
    return {
        "clips": len(truth),
        **{f"psnr_{name}_db": float(psnr_db(errors).mean()) for name, errors in mse.items()},
        "gain_db": mean,
        "gain_low_db": None if spread is None else mean - spread,
        "gain_high_db": None if spread is None else mean + spread,
        "gain_pooled_db": float(psnr_db(mse["generated"].mean()) - psnr_db(mse["repeated"].mean())),
    }
