"""The handwritten digits inside scikit-learn (UCI Optical Recognition, 1797 images of 8x8), split and rendered at
half-pixel phases.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .hashing import shuffled

__all__ = ["DIGIT_SIZE", "SPRITE_SIZE", "digit_split", "digit_sprites", "load_digit_images"]

DIGIT_SIZE = 12
"""Side of a rendered digit, px."""
SPRITE_SIZE = DIGIT_SIZE + 1
"""Side of a sprite, px: one more than the digit, room for a shift of half a pixel."""
_SPLIT_SEED = 8801
_NUM_TEST = 360


@lru_cache(maxsize=1)
def load_digit_images() -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [1797, 8, 8] in [0, 1], labels int64 [1797]), read-only.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("moving-digits takes its digits from scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16.0).astype(np.float32)
    labels = labels.astype(np.int64)
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


@lru_cache(maxsize=2)
def digit_split(split: str) -> tuple[np.ndarray, ...]:
    """Indices into :func:`load_digit_images` of each class 0..9, int64, ascending: 1437 images for "train", 360 for
    "test".

    360 of 1797 are dealt to the classes by the method of largest remainders; inside a class a fixed shuffle chooses.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
    _, labels = load_digit_images()
    counts = np.bincount(labels, minlength=10)
    share = counts * _NUM_TEST / counts.sum()
    num_test = np.floor(share).astype(int)
    num_test[np.argsort(num_test - share, kind="stable")[: _NUM_TEST - num_test.sum()]] += 1
    chosen = []
    for digit in range(10):
        members = np.flatnonzero(labels == digit)[shuffled(_SPLIT_SEED, counts[digit], stream=digit)]
        part = members[: num_test[digit]] if split == "test" else members[num_test[digit] :]
        chosen.append(np.sort(part))
    return tuple(chosen)


@lru_cache(maxsize=1)
def digit_sprites() -> np.ndarray:
    """All images at the four half-pixel phases: uint8 [1797, 2, 2, 13, 13], indexed by image, phase y, phase x;
    read-only.

    Drawn at twice the resolution (24 px, linear interpolation, black outside), shifted by the phase, then averaged
    over 2x2.
    """
    images, _ = load_digit_images()
    side = 2 * DIGIT_SIZE
    source = (np.arange(side) + 0.5) * 8 / side - 0.5
    hat = np.maximum(0.0, 1.0 - np.abs(source[:, None] - np.arange(8)[None, :])).astype(np.float32)  # [24, 8]
    large = np.einsum("ia,nab,jb->nij", hat, images, hat)
    sprites = np.empty((len(images), 2, 2, SPRITE_SIZE, SPRITE_SIZE), dtype=np.uint8)
    for phase_y in range(2):
        for phase_x in range(2):
            canvas = np.zeros((len(images), 2 * SPRITE_SIZE, 2 * SPRITE_SIZE), dtype=np.float32)
            canvas[:, phase_y : phase_y + side, phase_x : phase_x + side] = large
            mean = canvas.reshape(len(images), SPRITE_SIZE, 2, SPRITE_SIZE, 2).mean(axis=(2, 4))
            sprites[:, phase_y, phase_x] = np.rint(mean * 255.0)
    sprites.setflags(write=False)
    return sprites
